from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsody.allocation import Node
from rhapsody.backends.core.accounts import PLAIN, Account, Capacity, Request
from rhapsody.gpus import PARTS, GpuLedger
from rhapsody.resources import Resources

GB = 10**9


def account_of(*nodes: Node, memory: int | None = None) -> Account:
    return Account([Capacity(node, memory) for node in nodes], GpuLedger())


def request(**resources: Any) -> Request:
    return Request.from_resources(Resources(**resources))


def test_plain_task_takes_one_cpu() -> None:
    account = account_of(Node("a", cpus=2))
    grants = [account.take(PLAIN), account.take(PLAIN)]
    assert all(grants)
    assert account.take(PLAIN) is None
    assert grants[0] is not None
    account.release(grants[0])
    assert account.take(PLAIN) is not None


def test_whole_gpus_are_handed_out_by_index() -> None:
    account = account_of(Node("a", cpus=8, gpus=(0, 1, 2)))
    first, second = account.take(request(gpus=2)), account.take(request(gpus=1))
    assert first is not None
    assert second is not None
    assert {*first.places[0].gpus, *second.places[0].gpus} == {0, 1, 2}
    assert account.take(request(gpus=1)) is None


def test_fractions_fill_one_gpu_before_the_next() -> None:
    account = account_of(Node("a", cpus=8, gpus=(0, 1)))
    places = [grant.places[0] for _ in range(3) if (grant := account.take(request(gpus=0.5)))]
    assert [place.gpus for place in places] == [(0,), (0,), (1,)]


def test_three_thirds_fit_on_one_gpu() -> None:
    account = account_of(Node("a", cpus=8, gpus=(0,)))
    assert all(account.take(request(gpus=1 / 3)) for _ in range(3))


def test_place_names_gpus_in_the_variable_of_its_node() -> None:
    account = account_of(Node("a", 4, ("4", "7"), "HIP_VISIBLE_DEVICES"))
    grant = account.take(request(gpus=2))
    assert grant is not None
    assert grant.places[0].environment == {"HIP_VISIBLE_DEVICES": "4,7"}


def test_memory_is_accounted() -> None:
    account = account_of(Node("a", cpus=8), memory=8 * GB)
    assert account.take(request(memory="6 GB"))
    assert account.take(request(memory="3 GB")) is None
    assert account.take(request(memory="2 GB"))


def test_exclusive_task_waits_for_others_and_keeps_them_out() -> None:
    account = account_of(Node("a", cpus=4))
    plain = account.take(PLAIN)
    assert plain is not None
    assert account.take(request(exclusive=True)) is None
    account.release(plain)
    exclusive = account.take(request(exclusive=True))
    assert exclusive is not None
    assert account.take(PLAIN) is None
    account.release(exclusive)
    assert account.take(PLAIN)


def test_ranks_fill_nodes_in_order() -> None:
    account = account_of(Node("a", cpus=2), Node("b", cpus=2))
    grant = account.take(request(ranks=3))
    assert grant is not None
    assert [place.node.name for place in grant.places] == ["a", "a", "b"]


def test_exclusive_ranks_share_their_node() -> None:
    account = account_of(Node("a", cpus=4), Node("b", cpus=4))
    grant = account.take(request(ranks=2, exclusive=True))
    assert grant is not None
    assert account.take(PLAIN) is not None  # on the other node
    account.release(grant)
    assert account.take(request(cpus=4)) is not None


def test_ranks_that_do_not_all_fit_take_nothing() -> None:
    account = account_of(Node("a", cpus=2), Node("b", cpus=2))
    assert account.take(request(ranks=2, nodes=["b"]))
    assert account.take(request(ranks=3)) is None
    assert account.take(request(ranks=2))


@pytest.mark.parametrize(
    ("resources", "kind", "message"),
    [
        ({"cpus": 5}, "cpu", "it asks for 5 CPUs; a has 4 CPUs, 2 GPUs and 8 GB of memory"),
        ({"gpus": 3}, "gpu", "it asks for 1 CPU and 3 GPUs; a has 4 CPUs, 2 GPUs"),
        ({"memory": "9 GB"}, "memory", "it asks for 1 CPU and 9 GB of memory; a has"),
        ({"gpus": 0.6, "ranks": 3}, "gpu", "it asks for 3 ranks with 1 CPU and 0.6 GPUs each"),
        ({"nodes": ["b"]}, "node", "there is no node b; the nodes are a"),
        ({"nodes": 2}, "node", "it asks for 1 CPU on 2 nodes; the nodes are a"),
    ],
)
def test_impossible_request_is_explained(
    resources: dict[str, Any], kind: str, message: str
) -> None:
    account = account_of(Node("a", cpus=4, gpus=(0, 1)), memory=8 * GB)
    assert message in (account.shortage(request(**resources)) or "")
    assert account.lacks(request(**resources)) == kind


def test_hold_leaves_later_tasks_the_rest() -> None:
    account = account_of(Node("a", cpus=4, gpus=(0, 1)))
    running = account.take(request(cpus=2, gpus=2))
    assert running is not None
    wanted = request(cpus=3, gpus=1)
    account.hold(wanted)
    assert account.take(request(cpus=2)) is None
    assert account.take(request(cpus=1)) is not None
    assert account.take(request(cpus=1)) is None
    account.release(running)
    assert account.take(wanted) is None  # another task of this kind
    assert account.take(wanted, holder=True) is not None


def test_hold_of_gpu_task_delays_no_task_beside_it() -> None:
    account = account_of(Node("a", cpus=8, gpus=(0, 1)))
    assert account.take(request(gpus=2))
    account.hold(request(gpus=2))
    assert all(account.take(PLAIN) for _ in range(6))


NODES = st.lists(
    st.builds(
        lambda cpus, gpus: Node("", cpus, tuple(range(gpus))), st.integers(1, 8), st.integers(0, 4)
    ),
    min_size=1,
    max_size=3,
).map(lambda nodes: [Node(f"n{i}", n.cpus, n.gpus) for i, n in enumerate(nodes)])
REQUESTS = st.builds(
    Request,
    cpus=st.integers(0, 4),
    gpu_parts=st.sampled_from([0, PARTS // 4, PARTS // 3, PARTS // 2, PARTS, 2 * PARTS]),
    memory=st.sampled_from([0, GB, 3 * GB]),
    ranks=st.integers(1, 4),
    exclusive=st.booleans(),
)


@given(NODES, st.lists(st.tuples(REQUESTS, st.integers(0, 3), st.booleans()), max_size=40))
def test_account_never_exceeds_its_nodes_and_returns_everything(
    nodes: list[Node], steps: list[tuple[Request, int, bool]]
) -> None:
    ledger = GpuLedger()
    account = Account([Capacity(node, 4 * GB) for node in nodes], ledger)
    running = []
    for wanted, ended, hold in steps:
        if hold:
            account.hold(wanted)
        grant = account.take(wanted, holder=hold)
        if grant is not None:
            assert len(grant.places) == wanted.ranks
            running.append(grant)
        for node in nodes:
            here = [(g, p) for g in running for p in g.places if p.node == node]
            assert sum(g.request.cpus for g, _ in here) <= node.cpus
            assert sum(g.request.memory for g, _ in here) <= 4 * GB
            for gpu in node.gpus:
                assert sum(p.parts for _, p in here if gpu in p.gpus) <= PARTS
            if any(g.request.exclusive for g, _ in here):
                assert len({id(g) for g, _ in here}) == 1
        account.drop_hold()
        for _ in range(min(ended, len(running))):
            account.release(running.pop(0))
    for grant in running:
        account.release(grant)
    for node in nodes:
        everything = Request(node.cpus, len(node.gpus) * PARTS, 4 * GB, nodes=(node.name,))
        assert account.take(everything) is not None


@given(NODES, REQUESTS)
def test_possible_request_is_met_by_idle_account(nodes: list[Node], wanted: Request) -> None:
    account = Account([Capacity(node, 4 * GB) for node in nodes], GpuLedger())
    possible = account.shortage(wanted) is None
    assert (account.take(wanted) is not None) == possible


def test_task_that_ends_beside_a_hold_makes_room_for_the_next() -> None:
    account = account_of(Node("a", cpus=4))
    assert account.take(PLAIN)
    account.hold(request(cpus=3))
    for _ in range(5):
        beside = account.take(PLAIN)
        assert beside is not None
        assert account.take(PLAIN) is None
        account.release(beside)


@given(NODES, REQUESTS, st.lists(REQUESTS, max_size=20), st.lists(REQUESTS, max_size=20))
def test_held_task_fits_once_the_tasks_before_the_hold_ended(
    nodes: list[Node], wanted: Request, before: list[Request], after: list[Request]
) -> None:
    account = Account([Capacity(node, 4 * GB) for node in nodes], GpuLedger())
    if account.shortage(wanted) is not None:
        return
    running = [grant for each in before if (grant := account.take(each)) is not None]
    account.hold(wanted)
    for each in after:
        account.take(each)  # they never end
    for grant in running:
        account.release(grant)
    assert account.take(wanted, holder=True) is not None


def test_task_that_does_not_fit_tells_nobody_that_gpus_are_free() -> None:
    class Listener:
        calls = 0

        def call(self) -> None:
            self.calls += 1

    ledger, listener = GpuLedger(), Listener()
    ledger.add_listener(listener.call)
    account = Account([Capacity(Node("a", cpus=8, gpus=(0, 1)))], ledger)
    held = account.take(request(gpus=1))
    assert held is not None
    assert account.take(request(gpus=1, ranks=2)) is None
    assert listener.calls == 0
    account.release(held)
    assert listener.calls == 1
    assert account.take(request(gpus=1, ranks=2)) is not None


def test_request_for_unknown_memory_can_be_held() -> None:
    account = account_of(Node("a", cpus=2))
    account.hold(request(memory="1 GB"))
    account.drop_hold()
    assert account.take(request(memory="1 GB")) is not None
