"""Records a run of each case, delivers one fault a time, and judges what became of it: while it was down, and after one more run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import NamedTuple

import scene as stage
import tracer
from cases import CASES, Case, Issue
from scene import SITE, Scene
from tracer import ERRORS, KILL, Point

OK_CODES = (os.EX_OK, os.EX_DATAERR, os.EX_TEMPFAIL, os.EX_CONFIG)
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torture")
PASSED_OVER = "certdrop-issue#"                    # the stand-in, when the keeper starts it: it is no part of certdrop


class Trial(NamedTuple):
    """One fault at one point of a case."""

    case: str
    point: Point
    fault: str

    def __str__(self) -> str:
        return f"{self.case} {self.point} {self.fault}"


class Verdict(NamedTuple):
    """What became of a trial: what is wrong (nothing is as it should be), and whether the point was reached."""

    trial: str
    about: str
    reached: bool
    wrong: list[str]


class Ordeal:
    """All trials of the cases, in one scene."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.cases: dict[str, Case] = {}

    def case(self, name: str) -> Case:
        """The case, prepared once and kept."""
        if name not in self.cases:
            self.cases[name] = CASES[name]()
            self.scene.use_stand_in(not self.cases[name].with_ca)
            self.cases[name].prepare(self.scene)
            self.scene.keep(name)
        self.scene.use_stand_in(not self.cases[name].with_ca)
        return self.cases[name]

    def record(self, name: str) -> tuple[list[tracer.Use], list[str]]:
        """The changing calls of an undisturbed run, and what is wrong with it."""
        case, wrong = self.case(name), list[str]()
        self.scene.restore(name)
        trace = tracer.Tracer(watch=stage.watch_keys(wrong), worker=case.worker)
        done = self.scene.traced(case.argv, trace)
        if done.code:
            wrong.append(f"undisturbed, it ends with {done.code}: {done.text}")
        wrong += [text for text in (case.goal(self.scene), *stage.wrong_at_any_time(self.scene), *stage.leftovers()) if text]
        uses = [use for use in trace.uses if use.point != Point("caller", "execve", 1) and not use.point.process.startswith(PASSED_OVER)]
        return uses, wrong

    def try_one(self, trial: Trial) -> Verdict:
        """Deliver the fault, and judge."""
        scene, case, wrong = self.scene, self.case(trial.case), list[str]()
        scene.restore(trial.case)
        spent = [f"{SITE}@{number:04d}.pem" for number in scene.generations() if scene.is_complete(number)]
        trace = tracer.Tracer(trial.point, trial.fault, stage.watch_keys(wrong), case.worker)
        accounts = scene.accounts()
        try:
            done = scene.traced(case.argv, trace)
        except tracer.Hung as error:
            return Verdict(str(trial), trace.hit, True, [f"it does not end: {error}"])
        wrong += [*stage.wrong_at_any_time(scene), *filter(None, [case.at_once(scene)])]
        if not stage.until(lambda: not stage.processes(), 5):
            wrong.append(f"left behind: {stage.processes()}")
        if trace.hit:
            wrong += self._judge_end(trial, case, done)
        arrived, asked = [reply for reply in scene.arrived() if reply not in spent], scene.asked()
        wrong += self._recover(trial, case, accounts)
        again = scene.asked()[len(asked):] if arrived else []
        if again:
            wrong.append(f"{arrived} had arrived, and the CA was asked for {again}")
        if wrong:
            wrong.append(f"[it ended with {done.code}: {done.text.strip()}]")
        return Verdict(str(trial), trace.hit, bool(trace.hit), wrong)

    def _judge_end(self, trial: Trial, case: Case, done: stage.Done) -> list[str]:
        """Whether the exit code and the words are right."""
        missing = case.goal(self.scene)
        if trial.fault == KILL and trial.point.process == "caller":
            return []
        if "Traceback" in done.text or "internal error" in done.text:
            return ["a traceback"]
        if trial.fault == KILL and trial.point.process == "keeper":
            return [] if done.code == os.EX_SOFTWARE and "ended by signal 9" in done.text else ["nobody says that it was killed"]
        if trial.fault == KILL and trial.point.process.startswith(case.worker):
            return []
        if done.code not in OK_CODES:
            return [f"exit code {done.code}"]
        if done.code == os.EX_OK and missing:
            return [f"exit code 0, but {missing}"]
        if done.code and "; " not in done.text:
            return ["no clear message"]
        return []

    def _recover(self, trial: Trial, case: Case, accounts: int) -> list[str]:
        """One more plain run, as cron starts it; and the same command again where it had not begun."""
        scene, wrong = self.scene, list[str]()
        if not (trial.fault == KILL and trial.point.process == "keeper"):
            scene.let_time_pass()
        runs = case.recover(scene)
        missing = case.goal(scene)
        if missing:
            wrong.append(f"after one more run {missing}: {runs}")
        if any(done.code for done in runs):
            wrong.append(f"one more run ends badly: {runs}")
        left = stage.leftovers()
        if left:
            wrong.append(f"left behind: {left}")
        if scene.accounts() > accounts + (case.number == 2 if isinstance(case, Issue) else 0):
            wrong.append("an account was lost, and another one made")
        return wrong + stage.wrong_at_any_time(scene)


def spread(found: list[Trial], count: int) -> list[Trial]:
    """So many of them, evenly."""
    return [found[i * len(found) // count] for i in range(count)] if count < len(found) else found


def trials(uses: dict[str, list[tracer.Use]], faults: tuple[str, ...]) -> list[Trial]:
    """Every point with these faults."""
    return [Trial(case, use.point, fault) for fault in faults for case, found in uses.items() for use in found]


def work(share: list[Trial]) -> None:
    """Inside a scene: try these, and print one verdict a line."""
    ordeal = Ordeal()
    for trial in share:
        try:
            verdict = ordeal.try_one(trial)
        except (stage.stage.WorldError, OSError, subprocess.SubprocessError, ValueError) as error:
            verdict = Verdict(str(trial), "", True, [f"the scene fails: {error!r}"])
        print(json.dumps(verdict), flush=True)


def recorded(names: list[str]) -> tuple[dict[str, list[tracer.Use]], list[str]]:
    """From outside: the uses of each case, and what is wrong with undisturbed runs."""
    lines = _in_scenes([["--record", name] for name in names], [""] * len(names))
    found = {name: json.loads(line) for name, (line,) in zip(names, lines)}
    uses = {name: [tracer.Use(Point(*point), about) for point, about in each[0]] for name, each in found.items()}
    return uses, [f"{name}: {text}" for name, each in found.items() for text in each[1]]


def try_all(chosen: list[Trial], jobs: int) -> list[Verdict]:
    """From outside: try these, side by side in as many scenes."""
    lines = _in_scenes([["--work"]] * jobs, [json.dumps(chosen[job::jobs]) for job in range(jobs)])
    return [Verdict(*json.loads(line)) for found in lines for line in found]


def _in_scenes(commands: list[list[str]], inputs: list[str]) -> list[list[str]]:
    """Run these parts of this program, each in a scene; the lines that each printed."""
    running = []
    for command, text in zip(commands, inputs):
        source, report = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        source.write(text)
        source.seek(0)
        running.append((subprocess.Popen([PROGRAM, *command], stdin=source, stdout=report), report))
    found = []
    for process, report in running:
        if process.wait():
            raise SystemExit("a scene ended badly")
        report.seek(0)
        found.append(report.read().splitlines())
    return found


def main(argv: list[str], text: str | None) -> int:
    """The command line."""
    if argv[:1] in (["--work"], ["--record"]):
        stage.enter([sys.argv[0], *argv])
        if argv[0] == "--record":
            print(json.dumps(Ordeal().record(argv[1])))
        else:
            work([Trial(case, Point(*point), fault) for case, point, fault in json.load(sys.stdin)])
        return os.EX_OK
    if argv[:1] == ["--list"]:
        uses, wrong = recorded(argv[1:] or list(CASES))
        for case, found in uses.items():
            for use in found:
                print(case, use.point, use.about)
        print("\n".join(wrong))
        return 1 if wrong else 0
    if argv[:1] == ["--point"] and len(argv) == 4:
        process, call, number = argv[2].rsplit(":", 2)
        return _tell(try_all([Trial(argv[1], Point(process, call, int(number)), argv[3])], 1), [])
    jobs = int(argv[argv.index("--jobs") + 1]) if "--jobs" in argv else max(2, os.cpu_count() or 1)
    names = [word for word in argv if word in CASES] or list(CASES)
    if argv[:1] == ["--all"]:
        uses, wrong = recorded(names)
        faults = tuple(word for word in argv if word in (KILL, *ERRORS)) or (KILL, *ERRORS)
        return _tell(try_all(trials(uses, faults), jobs), wrong)
    if argv[:1] == ["--sample"]:
        uses, wrong = recorded(names)
        return _tell(try_all(sample(uses, int(argv[1]), int(argv[2])), jobs), wrong)
    print(text, file=sys.stderr)
    return os.EX_USAGE


def sample(uses: dict[str, list[tracer.Use]], kills: int, errors: int) -> list[Trial]:
    """So many kills, and so many of each error, evenly spread over all points."""
    found = spread(trials(uses, (KILL,)), kills)
    for shift, error in enumerate(ERRORS):
        each = trials(uses, (error,))
        found += spread(each[shift * 3:] + each[:shift * 3], errors)
    return found


def _tell(verdicts: list[Verdict], wrong: list[str]) -> int:
    count: Counter[str] = Counter()
    for verdict in verdicts:
        case, _, fault = verdict.trial.split()
        count[f"{case} {fault}"] += 1
        count[fault] += 1
        count["not reached"] += not verdict.reached
        count["failed"] += bool(verdict.wrong)
        if verdict.wrong:
            print(f"{verdict.trial} ({verdict.about})")
            for text in verdict.wrong:
                print(f"    {text}")
    for text in wrong:
        print(text)
    print(", ".join(f"{what}: {number}" for what, number in sorted(count.items())))
    print(f"{len(verdicts)} trials, {count['failed']} failed, {count['not reached']} not reached, {time.strftime('%H:%M:%S')}")
    return 1 if count["failed"] or wrong else 0
