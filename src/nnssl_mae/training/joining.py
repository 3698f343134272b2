"""A place to meet that holds nothing of an earlier start.

``torchrun --max-restarts`` starts all processes again after one has failed. Since torch 2.4 they meet at the same store
as before, under the same keys: some find the addresses that the dead ones left there, and all wait for one another for
half an hour. So they first agree on a word of their own, and put it before every key.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_PATIENCE = timedelta(minutes=30)  # torch's own for gloo
_PAUSE = 0.05  # s


def meeting_place() -> tuple[Store, int, int]:
    """A store for ``init_process_group`` that all processes of this start share and no others; rank and their number.

    Raises:
        TimeoutError: not all processes came within half an hour.
    """
    store, rank, processes = next(rendezvous("env://", timeout=_PATIENCE))
    word = _lead(store, processes) if rank == 0 else _follow(store, rank)
    return PrefixStore(f"start/{word}", store), rank, processes


def _lead(store: Store, processes: int) -> str:
    """Gives every process that asks a word; a question left by an earlier start gets an answer that nobody reads."""
    word, waiting = _new_word(), set(range(1, processes))
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while waiting:
        for rank in sorted(waiting):
            if store.check([_question(rank)]):
                store.set(_answer(store.get(_question(rank)).decode()), word)
            if store.check([_thanks(word, rank)]):
                waiting.discard(rank)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(waiting)} of {processes} processes did not come within {_PATIENCE}")
        time.sleep(_PAUSE)
    return word


def _follow(store: Store, rank: int) -> str:
    """Asks under a name that nobody has used before, so that no old answer can be taken for the one to it."""
    name = _new_word()
    store.set(_question(rank), name)
    store.wait([_answer(name)], _PATIENCE)
    word = store.get(_answer(name)).decode()
    store.set(_thanks(word, rank), "")
    return word


def _new_word() -> str:
    return uuid.uuid4().hex


def _question(rank: int) -> str:
    return f"nnssl_mae/question/{rank}"


def _answer(name: str) -> str:
    return f"nnssl_mae/answer/{name}"


def _thanks(word: str, rank: int) -> str:
    return f"nnssl_mae/thanks/{word}/{rank}"
