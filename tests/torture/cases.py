"""What is tortured: for each verb a prepared state, the command, and how to tell that what was wanted has come about."""

from __future__ import annotations

import os

import scene as stage
from scene import ETC, INSTALL, SITE, SPOOL, STATE, Scene

COPY = f'copy = {{path = "{stage.COPIES}/{SITE}.pem", owner = "root", group = "www-data", mode = "0640", what = "combined"}}\n'


class Case:
    """A verb. `prepare` makes the state, `goal` says what is missing of what was wanted."""

    argv: list[str] = []
    settings = COPY
    worker = "keeper"                              # what the first process's child is
    with_ca = False                                # the real issuer, and Pebble

    def recover(self, scene: Scene) -> list[stage.Done]:
        """One more plain run, as cron starts it; and the same command again where it had not begun."""
        runs = [scene.plain(*INSTALL)]
        if any(entry.endswith(".now") for entry in scene.posted()):
            runs += scene.tick()
        if self.goal(scene):
            scene.let_time_pass()
            runs.append(scene.plain(*self.argv))
        return runs

    def prepare(self, scene: Scene) -> None:
        """A site that is served, with one certificate of the CA; its next request is posted."""
        scene.forget()
        scene.use_forger()
        scene.configure(self.settings)
        scene.plain(*INSTALL)
        scene.serve()
        for done in scene.tick():
            if done.code:
                raise stage.stage.WorldError(f"preparing: {done} {stage.stage.read('/var/log/certdrop/keeper.log')}")

    def goal(self, scene: Scene) -> str:
        """"" where the wanted state holds."""
        raise NotImplementedError

    def at_once(self, scene: Scene) -> str:
        """What must not be, not even a moment after the fault; "" for nothing."""
        return ""

    def settled(self, scene: Scene, live: int) -> str:
        """What is missing until this generation is installed, served and copied, and the next is posted."""
        if (scene.live(), scene.proven()) != (live, live):
            return f"live is {scene.live()}, proven {scene.proven()}, not {live}"
        if not scene.shows(stage.fingerprint_on_disk()):
            return "nginx shows another certificate"
        posted = [entry for entry in scene.posted() if not entry.endswith(".revoke")]
        if os.path.exists(f"{SPOOL}/replies") and posted != [f"{SITE}@{scene.generations()[-1]:04d}.csr"]:
            return f"posted are {posted}"
        if self.settings and stage.stage.read(f"{stage.COPIES}/{SITE}.pem") != "".join(
                stage.stage.read(f"{STATE}/live/{SITE}/{part}") for part in ("privkey.pem", "fullchain.pem")):
            return "the copy is another's"
        return ""


class Add(Case):
    """`certdrop add` to a host that has no site."""

    argv = ["/usr/sbin/certdrop", "add", SITE]
    settings = ""

    def prepare(self, scene: Scene) -> None:
        """Nothing but nginx."""
        scene.forget()
        scene.use_forger()

    def goal(self, scene: Scene) -> str:
        if not os.path.exists(f"{ETC}/sites.d/{SITE}.toml"):
            return "there is no such site"
        if scene.live() < 2 or os.path.exists(f"{STATE}/live/{SITE}/placeholder"):
            return f"live is {scene.live()}"
        if scene.posted() != [f"{SITE}@{scene.generations()[-1]:04d}.csr"] or scene.is_complete(scene.generations()[-1]):
            return f"posted are {scene.posted()}"
        return ""


class Install(Case):
    """`certdrop-install` with a reply waiting."""

    argv = INSTALL

    def prepare(self, scene: Scene) -> None:
        """A served site whose next certificate has arrived."""
        super().prepare(scene)
        scene.plain(stage.ISSUE, SITE)

    def goal(self, scene: Scene) -> str:
        return self.settled(scene, 3)


class Rotate(Case):
    """`certdrop rotate` of a key that renewals keep."""

    argv = ["/usr/sbin/certdrop", "rotate", SITE]
    settings = 'key_max_age = "180d"\n' + COPY

    def goal(self, scene: Scene) -> str:
        if scene.live() < 3:
            return f"live is {scene.live()}"
        if scene.fact(scene.live(), "request", "spki_sha256") == scene.fact(2, "request", "spki_sha256"):
            return "the key is the old one"
        return self.settled(scene, scene.live())


class Compromised(Rotate):
    """`certdrop rotate --compromised`: what was issued for the old key is to be revoked, but not before another is served."""

    argv = ["/usr/sbin/certdrop", "rotate", SITE, "--compromised"]

    def goal(self, scene: Scene) -> str:
        if self.at_once(scene):
            return self.at_once(scene)
        wanted, burnt = [entry for entry in scene.posted() if entry.endswith(".revoke")], self.burnt()
        if not burnt or scene.fact(scene.live(), "request", "spki_sha256") in burnt or scene.live() < 3:
            return f"live is {scene.live()}, with the old key"
        if wanted != [f"{SITE}@0002.revoke"]:
            return f"to be revoked is {wanted}"
        return self.settled(scene, scene.live())

    def at_once(self, scene: Scene) -> str:
        """Nothing is posted to be revoked that still serves."""
        wanted = [entry for entry in scene.posted() if entry.endswith(".revoke")]
        if wanted and (scene.proven() != scene.live() or scene.fact(scene.live(), "request", "spki_sha256") in self.burnt()):
            return f"{wanted} is to be revoked, and still used"
        return ""

    @staticmethod
    def burnt() -> str:
        """The list of burnt keys."""
        return stage.stage.read(f"{STATE}/keeper/burnt") if os.path.exists(f"{STATE}/keeper/burnt") else ""


class Rollback(Case):
    """`certdrop rollback` from the third generation to the second."""

    argv = ["/usr/sbin/certdrop", "rollback", SITE]

    def prepare(self, scene: Scene) -> None:
        """A served site with two certificates of the CA."""
        super().prepare(scene)
        scene.plain(stage.ISSUE, SITE)
        scene.plain(*INSTALL)

    def goal(self, scene: Scene) -> str:
        return self.settled(scene, 2) or ("the next key is the old one" if scene.posted() == [f"{SITE}@0004.csr"] else "")


class Remove(Case):
    """`certdrop remove` of a site that no service needs any more."""

    argv = ["/usr/sbin/certdrop", "remove", SITE]
    settings = ""

    def prepare(self, scene: Scene) -> None:
        """A site that was served."""
        super().prepare(scene)
        scene.nginx.remove_site(SITE)
        scene.nginx.reload()

    def goal(self, scene: Scene) -> str:
        for path in (f"{ETC}/sites.d/{SITE}.toml", f"{STATE}/sites/{SITE}", f"{STATE}/live/{SITE}", f"{STATE}/proven/{SITE}", f"{STATE}/keeper/{SITE}.json"):
            if os.path.lexists(path):
                return f"{path} is there"
        if scene.posted():
            return f"posted are {scene.posted()}"
        if stage.stage.read(f"{STATE}/keeper/retired/{SITE}") != "3":
            return "its last number is not noted"
        return ""


class Issue(Case):
    """`certdrop-issue` for the first time: an account is registered, an order placed."""

    argv = [stage.ISSUE, "--no-install", SITE]
    settings = ""
    worker = "issuer"
    with_ca = True
    number = 2

    def prepare(self, scene: Scene) -> None:
        """A site whose request is posted, wanted now; no account."""
        scene.forget()
        scene.use_ca()
        scene.configure()
        scene.plain(*INSTALL)

    def goal(self, scene: Scene) -> str:
        if scene.live() >= self.number:
            return ""
        return "" if f"{SITE}@{self.number:04d}.pem" in scene.arrived() else "there is no reply"

    def recover(self, scene: Scene) -> list[stage.Done]:
        """The run that cron starts; an administrator's, who does not wait for the back-off; and root takes the reply."""
        runs = [scene.plain(stage.ISSUE, "--no-install")]
        if self.goal(scene):
            runs.append(scene.plain(*self.argv))
        runs += [scene.plain(*INSTALL), scene.plain(stage.ISSUE, "--no-install")]
        if scene.live() != self.number:
            runs.append(stage.Done(1, f"live is {scene.live()}"))
        return runs


class IssueAgain(Issue):
    """`certdrop-issue --force` with an account that is known."""

    argv = [stage.ISSUE, "--no-install", "--force", SITE]
    number = 3

    def prepare(self, scene: Scene) -> None:
        """A site with its first certificate."""
        super().prepare(scene)
        done = scene.plain(stage.ISSUE, "--no-install")
        if done.code or scene.plain(*INSTALL).code:
            raise stage.stage.WorldError(f"preparing: {done}")


class Import(Case):
    """`certdrop-import` of a pair that nginx serves already."""

    argv = ["/usr/sbin/certdrop-import", "--key", f"{stage.RUN}/old.key", "--chain", f"{stage.RUN}/old.pem", "--name", SITE, "--yes"]
    settings = ""

    def prepare(self, scene: Scene) -> None:
        """No site; nginx reads the pair of somebody else."""
        scene.forget()
        scene.use_forger()
        scene.leave_pair("old")

    def goal(self, scene: Scene) -> str:
        if not scene.shows(stage.stage.fingerprint(stage.stage.read(f"{stage.RUN}/old.pem"))):
            return "nginx shows another certificate"
        if not os.path.exists(f"{STATE}/sites/{SITE}"):
            missing = [path for path in (f"{ETC}/sites.d/{SITE}.toml", f"{STATE}/live/{SITE}") if os.path.lexists(path)]
            return f"half of it is there: {missing}" if missing else "it was not imported"
        return self.settled(scene, 1)


CASES: dict[str, type[Case]] = {
    "add": Add, "install": Install, "rotate": Rotate, "compromised": Compromised, "rollback": Rollback, "remove": Remove,
    "issue": Issue, "issue-again": IssueAgain, "import": Import,
}
