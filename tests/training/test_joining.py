"""Processes that were started again meet each other and not what the dead ones left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, PrefixStore, Store

from nnssl_mae.training import joining


@pytest.fixture
def store() -> HashStore:
    """One that outlives a start, as torchrun's does; threads stand for processes."""
    return HashStore()


def start(store: Store, processes: int) -> list[Store]:
    """The meeting place that each process of a start finds."""

    def meet(rank: int) -> Store:
        word = joining._lead(store, processes) if rank == 0 else joining._follow(store, rank)
        return PrefixStore(word, store)

    with ThreadPoolExecutor(processes) as threads:
        return list(threads.map(meet, range(processes)))


def test_all_processes_of_a_start_share_a_place(store: HashStore) -> None:
    places = start(store, 4)
    places[3].set("address", "here")
    assert [place.get("address") for place in places] == [b"here"] * 4


def test_a_second_start_sees_nothing_of_the_first(store: HashStore) -> None:
    for place in start(store, 3):
        place.set("address", "stale")
    assert not any(place.check(["address"]) for place in start(store, 3))


def test_questions_of_processes_that_died_while_they_waited_do_not_matter(store: HashStore) -> None:
    store.set(joining._question(1), "asked-by-the-dead")
    store.set(joining._question(2), "asked-by-the-dead-too")
    places = start(store, 3)
    places[0].set("address", "here")
    assert places[2].get("address") == b"here"


def test_a_process_alone_waits_for_nobody(store: HashStore) -> None:
    assert len(start(store, 1)) == 1


def test_the_first_process_does_not_wait_for_ever(store: HashStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_PATIENCE", joining.timedelta(seconds=0.2))
    with pytest.raises(TimeoutError, match="1 of 2 processes"):
        joining._lead(store, 2)
