"""The public verbs: plan, swap, explain."""

from __future__ import annotations

import logging
from typing import Any

from numba_swap.copies.copies import Copies, no_copies
from numba_swap.copies.from_arrays import plan_array_blocks
from numba_swap.copies.from_pointers import Validation, plan_pointers
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.ranking import Decision, Situation
from numba_swap.dispatch.settings import Mode, Policy, current_settings
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.errors import ModeUnavailableError
from numba_swap.modes.kernel import launch as kernel
from numba_swap.modes.kernel.loading import why_not_loaded
from numba_swap.swap import select
from numba_swap.swap.plan_cache import Run, find_recipe, keep_recipe
from numba_swap.swap.select import How
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")


class CopyPlan:
    """Copies that were checked once and can be run many times.

    Made by `plan_blocks`. The plan keeps the arrays alive; their contents are read and written
    when it runs. It may be run from several threads, and again before an earlier run is over if
    the streams order the two.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies.
    """

    def __init__(self, driver: Driver, copies: Copies) -> None:
        self._driver = driver
        self._copies = copies
        self.nbytes = copies.nbytes
        # How it ran last, with all that this followed from: most plans run in one way only.
        self._last: Run | None = None

    def __len__(self) -> int:
        """Return the number of copies after merging neighbours."""
        return len(self._copies)

    def __repr__(self) -> str:
        return f"<CopyPlan: {len(self)} copies, {self.nbytes} bytes, {self._copies.direction}>"

    def run(
        self,
        stream: Any = None,
        mode: Mode | str = "auto",
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Transfer:
        """Enqueue the copies and return at once.

        Parameters
        ----------
        stream : Numba stream, object with ``__cuda_stream__``, int or None
            Where the copies are enqueued, after the work already there and before what follows.
            None is Numba's default stream.
        mode : {"auto", "batch", "loop", "kernel"} or Mode
            How to copy.
        policy : {"throughput", "overlap", "latency"} or Policy, optional
            What mode ``"auto"`` is to be good for (see `Policy`); by default what `override` or
            the environment says, else ``"throughput"``.
        max_blocks : int, optional
            The most thread blocks that a kernel may have, to leave room for other kernels.

        Returns
        -------
        Transfer
            What to wait on.

        Raises
        ------
        ModeUnavailableError
            If a forced mode cannot run these copies.
        DriverCallError
            If the driver refuses; it names the copy at fault and says what was submitted.
        """
        last = self._last
        if last is not None and last.holds(self._driver, stream, mode, max_blocks, policy):
            event = self._driver.pools.spare_event(last.context)
            if not event:  # to make one, the context would have to be current
                return self._run(How(stream, mode, max_blocks, policy))
            work = InFlight(self._driver, last.context, (self._copies, stream), False, event)
            try:
                launched = kernel.submit_again(
                    self._driver,
                    self._copies,
                    work,
                    stream=last.handle,
                    context=last.context,
                    device=last.device,
                    max_blocks=last.most_blocks,
                )
            except BaseException:
                work.close_after_failure(last.handle)
                raise
            if launched:
                if _log.isEnabledFor(logging.DEBUG):
                    _log.debug("%s", last.decision)
                return Transfer(work, last.decision, False)
            work.cancel()
        return self._run(How(stream, mode, max_blocks, policy))

    def explain(
        self,
        stream: Any = None,
        mode: Mode | str = "auto",
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Decision:
        """Say which mode `run` would use with these arguments, and why; nothing is copied.

        Parameters
        ----------
        stream, mode, policy, max_blocks
            As for `run`.

        Returns
        -------
        Decision
            The mode and the reason. Its `Decision.table` shows every mode: whether it is allowed,
            and if not why, its predicted time, and which is chosen.

        Raises
        ------
        ModeUnavailableError
            If a forced mode cannot run these copies.
        """
        driver, copies = self._driver, self._copies
        return select.in_context(
            driver,
            copies.device,
            copies.direction,
            How(stream, mode, max_blocks, policy),
            lambda situation: select.explain(driver, copies, situation, mode),
        )

    def _run(self, how: How) -> Transfer:
        copies = self._copies
        return select.in_context(
            self._driver,
            copies.device,
            copies.direction,
            how,
            lambda situation: self._submit(situation, how),
        )

    def _submit(self, situation: Situation, how: How) -> Transfer:
        driver, copies = self._driver, self._copies
        choice = select.decide(driver, copies, situation, how.mode)
        decision = choice.decision
        if len(copies) == 0:
            return Transfer(None, decision, False)
        if copies.producer_streams:
            select.wait_for_producers(driver, copies, situation)
        transfer = select.track(
            driver,
            situation,
            decision,
            (copies, how.stream),
            lambda work: select.submit(driver, copies, situation, choice, work),
        )
        if decision.modes == (Mode.KERNEL,) and not (
            choice.parts or situation.capturing or copies.producer_streams
        ):
            self._last = Run(
                how,
                current_settings(),
                situation.stream,
                situation.context,
                situation.device,
                situation.max_blocks,
                decision,
                find_costs(driver, situation.device),
            )
        return transfer


def plan_blocks(src: Any, dst: Any, block_mapping: Any, *, block_axis: int = 0) -> CopyPlan:
    """Check a swap of blocks once, to run it many times.

    Parameters
    ----------
    src, dst : array, or sequence of arrays
        Where the blocks come from and go to: one array each, or equally many layers (list or
        tuple) that share the mapping. An array is anything with ``__cuda_array_interface__``
        (Numba, CuPy, PyTorch), a NumPy array (pinned, mapped, managed or plain), or anything that
        speaks DLPack (a pinned PyTorch CPU tensor). The two may differ in strides, number of
        blocks and dtype, so long as their blocks have as many bytes.
    block_mapping : array_like of int, shape (n, 2)
        Source block and destination block of each row, in host memory.
    block_axis : int, optional
        The axis along which the blocks lie.

    Returns
    -------
    CopyPlan
        Validated copies: empty ones dropped, neighbours merged. A block that is not contiguous
        is copied as its contiguous runs.

    Raises
    ------
    BadArgumentError
        A block axis that is no integer.
    BadPlanError
        Wrong shape or dtype of the mapping, blocks out of range, destination blocks written
        twice, one block written and read, unequal block sizes, a read-only destination. Nothing
        was copied.
    UnsupportedArrayError
        An argument that is no array.
    DriverUnavailableError
        No CUDA driver or device.

    Notes
    -----
    Bytes are copied as they are: dtypes are never converted, and masks of `numpy.ma` are ignored.
    Only the bytes of a block must agree.

    In one array, copies of a block onto itself are left out, and a swap that writes a block
    which another row reads is refused: the order of copies is not defined.
    """
    driver = current_driver()
    driver.current_context()
    return CopyPlan(driver, plan_array_blocks(driver, src, dst, block_mapping, block_axis))


def swap_blocks(
    src: Any,
    dst: Any,
    block_mapping: Any,
    *,
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
) -> Transfer:
    """Copy blocks between arrays: ``dst[mapping[i, 1]] = src[mapping[i, 0]]`` for every row.

    Parameters
    ----------
    src, dst, block_mapping, block_axis
        As for `plan_blocks`.
    stream : Numba stream, object with ``__cuda_stream__``, int or None, optional
        Where the copies are enqueued, after the work already there and before what follows.
        None is Numba's default stream.
    mode : {"auto", "batch", "loop", "kernel"} or Mode, optional
        How to copy; ``"auto"`` chooses by the driver, the memory and the sizes.
    policy : {"throughput", "overlap", "latency"} or Policy, optional
        What mode ``"auto"`` is to be good for (see `Policy`); by default what `override` or the
        environment says, else ``"throughput"``.
    max_blocks : int, optional
        The most thread blocks that a kernel may have, to leave room for other kernels.

    Returns
    -------
    Transfer
        The call returns as soon as the work is enqueued: wait on this, or on the stream.

    Raises
    ------
    NumbaSwapError
        As for `plan_blocks` and `CopyPlan.run`.
    """
    driver = current_driver()
    recipe = find_recipe(src, dst, block_axis)
    if recipe is not None:
        again = recipe.swap(driver, src, dst, block_mapping, How(stream, mode, max_blocks, policy))
        if again is not None:
            return again
    plan = plan_blocks(src, dst, block_mapping, block_axis=block_axis)
    transfer = plan.run(stream, mode, policy=policy, max_blocks=max_blocks)
    if plan._last is not None:
        keep_recipe(driver, src, dst, block_axis, plan._copies, plan._last)
    return transfer


def swap_blocks_batch(
    src_ptrs: Any,
    dst_ptrs: Any,
    sizes: Any,
    *,
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    validate: Validation = "bounds",
) -> Transfer:
    """Copy between raw addresses, ``sizes[i]`` bytes from ``src_ptrs[i]`` to ``dst_ptrs[i]``.

    Parameters
    ----------
    src_ptrs, dst_ptrs, sizes : array_like of int, shape (n,)
        Addresses, and lengths in bytes, in host memory (NumPy, list, CPU tensor).
    stream, mode, policy, max_blocks
        As for `swap_blocks`.
    validate : {"bounds", "full", "none"}, optional
        ``"bounds"``: every copy lies, at both sides, wholly inside one allocation that CUDA
        knows, or inside mapped memory of this process; the driver is asked once an allocation.
        ``"full"``: also, no two destinations overlap, and no copy writes what another reads.
        ``"none"``: nothing but lengths and dtypes is checked. The first address of each side is
        taken to tell what kind of memory all of them are, and a wrong address kills the process,
        overwrites memory of others, or breaks the CUDA context for good.

    Returns
    -------
    Transfer
        What to wait on. Nothing but the caller keeps the memory alive: it must outlive the copy.

    Raises
    ------
    BadPlanError
        Unequal lengths, a negative size, a null pointer, an address that is no memory, a copy
        that runs past its allocation, copies that overlap if that was asked for. Nothing was
        copied.
    BadArgumentError
        Another value of `validate`.
    NumbaSwapError
        As for `CopyPlan.run`.

    Notes
    -----
    Addresses and sizes need no alignment. The order of copies is not defined: the result of
    overlapping ones, which only ``validate="full"`` looks for, is not either, but they touch no
    other memory.
    """
    driver = current_driver()
    driver.current_context()
    copies = plan_pointers(driver, src_ptrs, dst_ptrs, sizes, validate)
    return CopyPlan(driver, copies).run(stream, mode, policy=policy, max_blocks=max_blocks)


def warm_up() -> None:
    """Pay on purpose for what the first swap would pay for: compilers, and the GPU's context.

    The first process on a machine compiles the kernels and the compiled parts of planning,
    which are kept in Numba's cache on disk. On H200 machines that took 7 to 10 seconds in all, and
    later processes 2, most of it to import Numba and to make the context. Nothing is copied.

    Raises
    ------
    DriverUnavailableError
        No CUDA driver or device.
    ModeUnavailableError
        This driver can run the kernel, but Numba cannot compile it; the reason says why. The
        other modes work all the same.
    """
    driver = current_driver()
    driver.current_context()
    version = current_settings().cap(driver.version)
    if version >= kernel.SINCE:
        device = driver.context_device(driver.current_context())
        situation = Situation(version, False, 0, 0, False, device)
        for obstacle in (
            kernel.why_not(driver, no_copies(), situation),
            why_not_loaded(driver, device, "exchange"),
        ):
            if obstacle is not None:
                raise ModeUnavailableError(Mode.KERNEL, obstacle)
