"""What a step keeps, what it reports, and the pair of functions that it is."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from divjax.core import Array, Batch, PyTree


class TrainState(NamedTuple):
    """Everything that must survive a restart; a plain tree of arrays.

    Attributes:
        step: [] int32, the number of updates done.
        params: the parameters, float32 where they are trained.
        opt_state: the optax state (of the trained entries).
        controllers: name -> state of that controller.
        refs: name -> reference tree.
        carry: `Loss.carry` of the last step.
        key: typed PRNG key of the run; step i draws its noise from fold_in(key, i).
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    controllers: Mapping[str, PyTree]
    refs: Mapping[str, PyTree]
    carry: PyTree
    key: Array


class Info(NamedTuple):
    """What may be logged of one step: already summed over devices and divided.

    Attributes:
        value: [], the objective.
        terms: name -> [], its terms before their coefficients.
        metrics: name -> [...], the metrics of the objective, and "empty_terms" [], the number of
            terms of this step that had no weight at all (they contributed 0).
    """

    value: Array
    terms: Mapping[str, Array]
    metrics: Mapping[str, Array]


class Init(Protocol):
    """`init(params, key, carry=()) -> TrainState`."""

    def __call__(self, params: PyTree, key: Array, carry: PyTree = ()) -> TrainState:
        """A state that shares no buffer with its arguments."""
        ...


class Update(Protocol):
    """`update(state, batch, frozen=None, *, axis_name=None) -> (state, Info)`."""

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        frozen: PyTree = None,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Info]:
        """One step; pure."""
        ...


class Step(NamedTuple):
    """A train step: what optax's (init, update) pair is to gradients."""

    init: Init
    update: Update
