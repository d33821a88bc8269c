from rekindle_cli.jobs.rounds import assemble, joined

STAMP = "2026-11-20T12:00:05.000000000Z 2026-11-20 12:00:05,000 rekindle "
FIRST = STAMP + "round 1 (first round): 2 pods, 2 workers; ours have rank 0 to 0"


def test_a_pod_says_in_its_log_which_rounds_it_joined() -> None:
    found = joined("digits-0", ["noise", FIRST, STAMP + "something else"])
    assert [(word.number, word.reason, word.pods, word.first_rank) for word in found] == [
        (1, "first round", 2, 0)
    ]
    assert found[0].at is not None


def test_a_reason_with_brackets_and_colons_is_kept_whole() -> None:
    line = STAMP + "round 2 (without a (b): c): 1 pods, 1 workers; ours have rank 0 to 0"
    assert joined("p", [line])[0].reason == "without a (b): c"


def test_members_are_in_rank_order_whoever_is_heard_first() -> None:
    other = FIRST.replace("rank 0 to 0", "rank 1 to 1")
    words = joined("digits-1", [other]) + joined("digits-0", [FIRST])
    (found,) = assemble(words)
    assert (found.members, found.whole, found.workers) == (("digits-0", "digits-1"), True, 2)


def test_a_round_is_not_whole_while_a_member_has_not_been_heard() -> None:
    (found,) = assemble(joined("digits-0", [FIRST]))
    assert not found.whole


def test_rounds_come_in_the_order_of_their_numbers() -> None:
    later = FIRST.replace("round 1", "round 10")
    middle = FIRST.replace("round 1", "round 2")
    assert [found.number for found in assemble(joined("a", [later, middle, FIRST]))] == [1, 2, 10]
