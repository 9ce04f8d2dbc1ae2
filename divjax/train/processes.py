"""The processes of one run: on a pod, on a cluster, or alone."""

import jax

from divjax.core.check import require


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of one run; the first line of a program, before any other use of JAX.

    Afterwards jax.devices(), and so `data_mesh()`, holds the devices of all processes, and each
    process passes the rows it has read through `shard_rows`. Without arguments the surroundings
    are asked (a TPU pod, SLURM, MPI, Kubernetes, ...); where they name no run, and for
    num_processes=1, there is nothing to join and nothing is done.

    Args:
        coordinator: "host:port" of process 0, equal in all processes.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: only some of the arguments are given, or one is out of range.
        RuntimeError: JAX has been used already, or the process belongs to another run.

    Example:
        >>> from divjax.train import parallel
        >>> parallel.start("10.0.0.1:1234", num_processes=1, process_id=0)  # alone: nothing to join
    """
    _check_start(coordinator, num_processes, process_id)
    if num_processes == 1 or jax.distributed.is_initialized():
        _check_joined(num_processes, process_id)
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        if coordinator is not None or "coordinator_address" not in str(error):
            raise
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise RuntimeError(
            "start: must come before any other use of JAX, which has begun already; call "
            "parallel.start() in the first line of the program, before arrays are made"
        ) from error


def _check_start(coordinator: str | None, count: int | None, index: int | None) -> None:
    given = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    require(
        None not in given.values() or set(given.values()) == {None} or count == 1,
        "start",
        "coordinator, num_processes and process_id must be given all or none",
        given,
        "without arguments a pod is found out; else pass all three",
    )
    if count is None:
        return
    require(
        isinstance(count, int) and count > 0,
        "start",
        "num_processes must be an int > 0",
        count,
        "pass how many processes the run has",
    )
    require(
        index is None or (isinstance(index, int) and 0 <= index < count),
        "start",
        f"process_id must be an int in 0..{count - 1}",
        index,
        "number the processes from 0",
    )
    require(
        coordinator is None or coordinator.rpartition(":")[2].isdecimal(),
        "start",
        "coordinator must be 'host:port'",
        coordinator,
        "pass the address of process 0, for example '10.0.0.1:1234'",
    )


def _check_joined(count: int | None, index: int | None) -> None:
    """A second call, as of a cell that is run again, must be of the same run."""
    if count is None or not jax.distributed.is_initialized():
        return
    have = (jax.process_count(), jax.process_index())
    if have != (count, 0 if index is None else index):
        raise RuntimeError(
            f"start: process {have[1]} of {have[0]} must stay so, got {index} of {count}; "
            "a process joins one run only"
        )
