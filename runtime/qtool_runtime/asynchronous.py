"""Steps of a generation in a thread, for applications that run an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable


async def steps_in_thread(
    step: Callable[[], bool], cancel: Callable[[], None], close: Callable[[], None]
) -> AsyncIterator[None]:
    """Runs one step after the other in the event loop's thread pool, and yields after each.

    ONNX Runtime releases the interpreter's lock while it computes, so that the loop goes on meanwhile. A task
    that is cancelled stops the forward pass, and is cancelled when that has ended.

    Args:
        step: does the work; returns whether there is more.
        cancel: stops a step that runs in another thread.
        close: frees what the steps have used.
    """
    import asyncio  # whoever runs an event loop has it; others load sooner without

    loop = asyncio.get_running_loop()
    more = True
    while more:
        running = loop.run_in_executor(None, step)
        try:
            more = await asyncio.shield(running)
        except asyncio.CancelledError:
            cancel()
            await asyncio.wait([running])
            close()
            raise
        yield
