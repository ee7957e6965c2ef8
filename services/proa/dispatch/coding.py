"""Coding groups at work: who joins, when a group closes, what is decoded when."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from proa.dispatch.actions import Assess, Decode, ForgetGroup, SetTimer
from proa.dispatch.events import PARITY, Assessed, Decoded
from proa.dispatch.group import Group, GroupEvent, GroupState, RowState
from proa.dispatch.query import Query
from proa.dispatch.redundancy import ParityWork
from proa.dispatch.reservoir import Reservoir
from proa.dispatch.state import State
from proa.dispatch.timers import CloseTimer, ExpiryTimer, PatienceTimer
from proa.dispatch.workers import Worker


class Coding:
    """The coding groups of one engine. It tells the engine what came of them by two callbacks:
    `on_reconstructed(query, group)` and `on_hopeless(query)`."""

    def __init__(
        self,
        state: State,
        *,
        on_reconstructed: Callable[[Query, Group, float], None],
        on_hopeless: Callable[[Query, float], None],
    ) -> None:
        self._state = state
        self._on_reconstructed = on_reconstructed
        self._on_hopeless = on_hopeless
        self.groups: dict[int, Group] = {}
        self._open: dict[Hashable, dict[int, None]] = {}
        self._reservoir = Reservoir(bytes_max=state.config.reservoir_bytes_max)
        self._group = 0

    # --- forming groups

    def join(self, query: Query, worker: Worker, now: float) -> None:
        """`query` was just sent to `worker`: put it into the oldest open group of its key that has
        no member in the worker's failure domain, else into a new one."""
        key = (query.key, worker.package)
        group = next(
            (
                self.groups[g]
                for g in self._open.get(key, {})
                if worker.domain not in self.groups[g].domains
            ),
            None,
        ) or self._new_group(key, worker.package, query.deadline, now)
        if group is None:
            return
        self._state.hold(query)
        query.group = group.id
        group.members.append(query.id)
        group.domains.add(worker.domain)
        if len(group.members) == group.k:
            self._close(group)

    def _new_group(self, key: Hashable, package: str, deadline: float, now: float) -> Group | None:
        state = self._state
        sampled = state.quality.sample_next()
        open_groups = sum(len(groups) for groups in self._open.values())
        # While reconstructions are not trusted, only the measured groups go on.
        if open_groups >= state.config.groups_open_max or (state.quality.low and not sampled):
            return None
        self._group += 1
        group = Group(
            id=self._group,
            key=key,
            package=package,
            k=state.config.k,
            rows=[RowState.WAITING] * state.config.r,
            sampled=sampled,
        )
        self.groups[group.id] = group
        self._open.setdefault(key, {})[group.id] = None
        if state.config.k > 1:
            state.out.append(SetTimer(CloseTimer(group.id), now + state.config.group_s_max))
        state.out.append(SetTimer(ExpiryTimer(group.id), deadline))
        return group

    def close_timer(self, group_id: int, now: float) -> None:
        """The group has waited long enough: fill it with recently answered queries.

        Without enough of them it stays open: zeros would be a query no model was trained on. A
        member that has failed waits no longer then: its error must not become a passed deadline.
        """
        group = self.groups.get(group_id)
        if group is None or group.state is not GroupState.OPEN:
            return
        missing = group.k - len(group.members)
        fillers = self._reservoir.take(group.key, missing, exclude=group.members)
        if len(fillers) < missing:
            group.unfilled = True
            self._progress(group, now)
            return
        for query_id in fillers:
            self._state.hold(self._state.queries[query_id])
        group.members.extend(fillers)
        group.fillers = frozenset(fillers)
        self._state.stats.fillers += len(fillers)
        self._close(group)

    def _close(self, group: Group) -> None:
        group.move(GroupEvent.CLOSE)
        group.unfilled = False
        self._leave_open(group)
        for row in range(len(group.rows)):
            self._state.redundant.add(ParityWork(group.id, row))

    def _leave_open(self, group: Group) -> None:
        siblings = self._open.get(group.key, {})
        siblings.pop(group.id, None)
        if not siblings:
            self._open.pop(group.key, None)

    def moved(self, query: Query, worker: Worker) -> None:
        """`query` was sent again, to `worker`: no parity row of its group may run there."""
        group = self.groups.get(query.group) if query.group is not None else None
        if group is not None:
            group.domains.add(worker.domain)

    def remember(self, query: Query) -> None:
        """Keep an exactly answered query as a filler for later groups."""
        self._state.hold(query)
        for left in self._reservoir.add((query.key, query.package), query.id, query.size):
            self._state.let_go(self._state.queries[left])

    # --- what happens to a group

    def row_sent(self, group: Group, row: int, worker: Worker, now: float) -> None:
        """A parity row runs on `worker`."""
        group.rows[row] = RowState.RUNNING
        group.domains.add(worker.domain)
        group.parity_due_at = now + self._state.latency.late_after_s()

    def row_ended(self, group_id: int, row: int, *, ok: bool, now: float) -> None:
        """A parity row was answered, failed, or could not be run."""
        if not ok:
            self._state.stats.redundancy_lost += 1
        group = self.groups.get(group_id)
        if group is None:
            return
        group.rows[row] = RowState.ANSWERED if ok else RowState.LOST
        self._progress(group, now)

    def member_changed(self, query: Query, now: float) -> None:
        """A member was answered, lost an attempt, or was settled."""
        group = self.groups.get(query.group) if query.group is not None else None
        if group is not None:
            self._progress(group, now)

    def patience_over(self, group_id: int, now: float) -> None:
        """A missing member is late now."""
        group = self.groups.get(group_id)
        if group is not None:
            group.patience_at = None
            self._progress(group, now)

    def decoded(self, event: Decoded, now: float) -> None:
        """Reconstructions are there, or could not be made."""
        group = self.groups.get(event.group)
        if group is None:
            return
        group.decoding = False
        group.decoded = bool(event.queries)
        group.decode_failed = not event.queries
        for query_id in event.queries:
            query = self._state.queries.get(query_id)
            if query is None or query.settled or query.exact:
                continue
            if self._state.config.mode == "enforce":
                self._on_reconstructed(query, group, now)
            else:
                query.would_be_s = now - query.arrived_at
        self._progress(group, now)

    def assessed(self, event: Assessed, now: float) -> None:
        """The agreement of the group's reconstructions is known."""
        if event.agreement is not None:
            self._state.quality.note(event.agreement)
        group = self.groups.get(event.group)
        if group is not None:
            group.assessing = False
            group.sampled = group.decoded = False
            self._progress(group, now)

    def expired(self, group_id: int, now: float) -> None:
        """The deadline of the first member has passed; a later member's may not have."""
        group = self.groups.get(group_id)
        if group is None:
            return
        queries = (self._state.queries[q] for q in group.real_members)
        later = max((q.deadline for q in queries if not q.settled), default=None)
        if later is None:
            self._finish(group)
        else:
            tick = now + self._state.config.tick_s
            self._state.out.append(SetTimer(ExpiryTimer(group.id), max(later, tick)))

    # --- what an engine asks

    def may_recover(self, query: Query) -> bool:
        """Whether `query` may still be reconstructed."""
        group = self.groups.get(query.group) if query.group is not None else None
        if group is None or query.exact or self._state.config.mode != "enforce":
            return False
        if group.decode_failed or group.unfilled or self._state.quality.low:
            return False
        return len(self._lost(group)) <= self._rows_expected(group)

    def rescue_at(self, query: Query, now: float) -> float | None:
        """When a reconstruction of `query` should be there; None: not to be expected."""
        if not self.may_recover(query):
            return None
        assert query.group is not None
        group = self.groups[query.group]
        if group.decoding or group.state is GroupState.DECODABLE:
            return now + min(self._state.config.tick_s, self._state.latency.late_after_s())
        running = RowState.RUNNING in group.rows
        return group.parity_due_at if running and group.parity_due_at > now else None

    def missing(self, group: Group) -> tuple[int, ...]:
        """Positions whose exact prediction is not known."""
        queries = self._state.queries
        return tuple(i for i, q in enumerate(group.members) if not queries[q].known)

    def _lost(self, group: Group) -> list[int]:
        """Members that only a reconstruction can answer."""
        queries = (self._state.queries[q] for q in group.members)
        return [q.id for q in queries if not q.known and not q.exact_may_come]

    def _rows_expected(self, group: Group) -> int:
        """Rows that are there or may come: one that waits needs a failure domain of its own."""
        places = self._state.workers.domains(PARITY, group.package) - group.domains
        waiting = group.rows.count(RowState.WAITING)
        return group.rows_possible - max(0, waiting - len(places))

    # --- moving on

    def _progress(self, group: Group, now: float) -> None:
        """Bring `group` up to date after any change. What it does may finish the group."""
        if group.id not in self.groups:
            return
        if group.state is GroupState.CLOSED:
            missing = self.missing(group)
            if 0 < len(missing) <= group.rows_answered:
                group.move(GroupEvent.RECOVERABLE)
        self._consider_assessment(group)
        if self._over(group):
            self._finish(group)
            return
        if group.state is GroupState.DECODABLE:
            self._consider_decoding(group, now)
        self._give_up_hopeless(group, now)

    def _over(self, group: Group) -> bool:
        settled = all(self._state.queries[q].settled for q in group.real_members)
        return settled and not group.decoding and not self._assessment_pending(group)

    def _finish(self, group: Group) -> None:
        if group.rows_possible == 0 and group.state is GroupState.CLOSED:
            group.move(GroupEvent.LOSE)
        else:
            group.move(GroupEvent.FINISH)
        self._leave_open(group)
        del self.groups[group.id]
        self._state.stats.groups[group.state.value] += 1
        self._state.out.append(ForgetGroup(group.id))
        for query_id in group.members:
            self._state.let_go(self._state.queries[query_id])

    def _consider_decoding(self, group: Group, now: float) -> None:
        """Decode as soon as one missing member is due; ask for a timer until then."""
        if group.decoding or group.decoded or group.decode_failed or self._state.quality.low:
            return
        missing = self.missing(group)
        queries = [self._state.queries[group.members[i]] for i in missing]
        due = [self._due_at(q, now) for q in queries if not q.settled and not q.exact]
        if not due:
            return
        if min(due) <= now:
            group.decoding = True
            self._state.out.append(Decode(group.id, tuple(group.members), missing))
        elif group.patience_at is None or min(due) < group.patience_at:
            group.patience_at = min(due)
            self._state.out.append(SetTimer(PatienceTimer(group.id), min(due)))

    def _due_at(self, query: Query, now: float) -> float:
        """When `query` may be answered by a reconstruction (patience, DESIGN 5)."""
        if self._state.config.patience == "first" or query.drill or not query.exact_may_come:
            return now
        return query.sent_at + self._state.latency.late_after_s()

    def _assessment_pending(self, group: Group) -> bool:
        if group.assessing:
            return True
        if not (group.sampled or group.decoded) or group.state is GroupState.OPEN:
            return False
        queries = (self._state.queries[q] for q in group.members)
        return group.rows_possible > 0 and all(q.known or q.exact_may_come for q in queries)

    def _consider_assessment(self, group: Group) -> None:
        """Once everything is known, compare what decoding gives with it (parm facts F10)."""
        if group.assessing or not (group.sampled or group.decoded) or self.missing(group):
            return
        waiting = any(row in (RowState.WAITING, RowState.RUNNING) for row in group.rows)
        if group.rows_answered == 0 or waiting:
            return
        group.assessing = True
        self._state.out.append(Assess(group.id, tuple(group.members)))

    def _give_up_hopeless(self, group: Group, now: float) -> None:
        for query_id in group.real_members:
            query = self._state.queries.get(query_id)
            if query is None or query.settled or query.exact_may_come:
                continue
            if not self.may_recover(query):
                self._on_hopeless(query, now)
