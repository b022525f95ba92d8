"""Threads that begin together."""

from __future__ import annotations

import threading


def run_together(functions, look=None):
    """Run all at once, and `look` all the while if there is one.

    Return what each returned, or raise the first error.
    """
    barrier = threading.Barrier(len(functions))
    results = [None] * len(functions)
    errors = []

    def enter(i):
        barrier.wait()
        try:
            results[i] = functions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    while look is not None and any(thread.is_alive() for thread in threads):
        look()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
