"""What is tortured: for each verb a prepared state, the command, and how to tell that what was wanted has come about."""

from __future__ import annotations

import os

import scene as stage
from scene import ETC, INSTALL, SITE, SPOOL, STATE, Scene

COPY = f'copy = {{path = "{stage.COPIES}/{SITE}.pem", owner = "root", group = "ssl-cert", mode = "0640", what = "combined"}}\n'


class Case:
    """A verb. `prepare` makes the state, `goal` says what is missing of what was wanted."""

    argv: list[str] = []
    settings = COPY

    def prepare(self, scene: Scene) -> None:
        """A site that is served, with one certificate of the CA; its next request is posted."""
        scene.forget()
        scene.configure(self.settings)
        scene.plain(*INSTALL)
        scene.serve()
        for done in scene.tick():
            if done.code:
                raise stage.stage.WorldError(f"preparing: {done} {stage.stage.read('/var/log/certdrop/keeper.log')}")

    def goal(self, scene: Scene) -> str:
        """"" where the wanted state holds."""
        raise NotImplementedError

    def settled(self, scene: Scene, live: int) -> str:
        """What is missing until this generation is installed, served and copied, and the next is posted."""
        if (scene.live(), scene.proven()) != (live, live):
            return f"live is {scene.live()}, proven {scene.proven()}, not {live}"
        if scene.served() != stage.fingerprint_on_disk():
            return "nginx shows another certificate"
        if os.path.exists(f"{SPOOL}/replies") and scene.posted() != [f"{SITE}@{scene.generations()[-1]:04d}.csr"]:
            return f"posted are {scene.posted()}"
        if self.settings and stage.stage.read(f"{stage.COPIES}/{SITE}.pem") != "".join(
                stage.stage.read(f"{STATE}/live/{SITE}/{part}") for part in ("fullchain.pem", "privkey.pem")):
            return "the copy is another's"
        return ""


class Add(Case):
    """`certdrop add` to a host that has no site."""

    argv = ["/usr/sbin/certdrop", "add", SITE]
    settings = ""

    def prepare(self, scene: Scene) -> None:
        """Nothing but nginx."""
        scene.forget()

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


CASES: dict[str, type[Case]] = {"add": Add, "install": Install, "rotate": Rotate, "rollback": Rollback, "remove": Remove}
