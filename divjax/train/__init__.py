"""The train step: objective and optimiser in, one pure `update` out, equal on 1 and on N devices.

    state.py       TrainState, Info, Step            step.py       make_step
    compose.py     alternate, over_seeds
    gradients.py   loss_and_grad, extragradient      parallel.py   compile, data_mesh, fsdp, start
    evaluate.py    make_eval                         checkpoint.py save, restore, open_checkpoints
    teacher_store.py  write, read: a teacher's top-k laws of a corpus, on disk

    import optax
    from divjax.train import make_eval, make_step
    from divjax.train import parallel               # compile: the only place that jits
    from divjax.train import checkpoint             # imports orbax, so only when asked for

    def objective(params, batch, ctx):              # -> divjax.core.Loss: sums and weights
        logits, _ = apply(params, batch["x"], key=row_keys(ctx), train=True)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return Loss(terms={"ce": (1.0, masked_mean(nll, batch["mask"]))})

    step = make_step(objective, optax.adam(1e-3))
    state = step.init(params, jax.random.key(0))
    update = parallel.compile(step)                 # on all devices: (step, mesh=data_mesh())
    state, info = update(state, batch)              # the old state is donated: gone

Signatures:

    make_step(objective, tx, *, controllers={}, references={}, grad_fn=None, accumulate=1,
              train=None, compute_dtype=None) -> Step
    Step.init(params, key, carry=()) -> TrainState              # copies: params stay yours
    Step.update(state, batch, frozen=None, *, axis_name=None) -> (TrainState, Info)
    TrainState(step, params, opt_state, controllers, refs, carry, key)         # step: [] int32
    Info(value, terms, metrics)                     # [], {name: []}, {name: [...]}
    alternate({"fake": (step, 4), "student": (step, 1)}) -> Step
    over_seeds(step, *, batch_axis=None) -> Step    # init(params [S, ...], keys [S]); infos [S]
    loss_and_grad(objective, *, accumulate=1, train=None, compute_dtype=None) -> GradFn
    extragradient(grad_fn, step_size) -> GradFn
    make_eval(metrics, *, batch_size) -> evaluate(params, data, *, axis_name=None) -> {name: [...]}
        metrics(params, batch, mask) -> {name: Mean}            # mask [B] bool, False on padding
    parallel.start(coordinator=None, num_processes=None, process_id=None)  # first line of a program
        # on a pod or cluster: joins the processes of the run; alone: nothing to do
    parallel.compile(step, *, mode="jit", mesh=None, rule=None, donate=True)
        -> (state, batch, frozen=None) -> (state, info)     # mesh=None: one device, as jax.jit
        # rule=fsdp(mesh): params, moments and references in parts, gathered in the step
    parallel.data_mesh(devices=None) -> Mesh        # all devices, or the first `devices`
    parallel.replicate(tree, mesh) -> tree          # a teacher, once, instead of at each step
    parallel.fsdp(mesh, *, min_size=2**14) -> rule  # or any (path, shape) -> PartitionSpec
    parallel.shard(tree, mesh, rule) -> tree        # a teacher, or the `like` of restore, in parts
    parallel.shardings(tree, mesh, rule) -> tree of NamedSharding      # of arrays or shapes
    parallel.shard_rows(batch, mesh) -> batch       # needed with several processes only
    checkpoint.save(directory, step, state, config) -> None     # done, on disk, when it returns
    checkpoint.restore(directory, like, config) -> (state, step) | None        # None: nothing there
    checkpoint.open_checkpoints(directory, config, *, keep=2) -> Checkpoints   # for a loop
        .save(step, state)                          # copies, then writes in the background
        .restore(like) -> (state, step) | None      # the newest whole one
        .close()                                    # waits for the last write; others may write
    teacher_store.write(folder, teacher, tokens, *, shard, provenance) -> None       # goes on
    teacher_store.read(folder) -> Store(about, laws)    # laws(indices [B]) -> TopK for a batch
    checkpoint.fingerprint(tree) -> str             # of a teacher, for the config of its runs

`frozen` holds teachers: any tree, an argument of `update`, never donated, never in a checkpoint:
save a teacher once, in a directory of its own, and put its fingerprint into the config.
`config` is a dataclass or a mapping of JSON values. `restore` raises ValueError, with path and
remedy, for a corrupt or foreign checkpoint and for a config that differs (it names the keys).
`step` of the checkpoint functions is a Python int: with seeds, state.step is [S].
"""

from divjax.train.compose import alternate, over_seeds
from divjax.train.evaluate import make_eval
from divjax.train.gradients import extragradient, loss_and_grad
from divjax.train.parallel import data_mesh
from divjax.train.state import Info, Step, TrainState
from divjax.train.step import make_step

__all__ = [
    "Info",
    "Step",
    "TrainState",
    "alternate",
    "data_mesh",
    "extragradient",
    "loss_and_grad",
    "make_eval",
    "make_step",
    "over_seeds",
]
