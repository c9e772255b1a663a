"""Which points there are in a run, and which of them are struck: each call's name, and its number in its thread."""

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attack.ground import Ground
from attack.outcome import Missed
from attack.scenes import Scene, scenes
from attack.traced import BACKUPD, TOUCHING, Tracing


@dataclass(frozen=True)
class Point:
    """One system call of a scene."""

    scene: Scene
    victim: str
    call: str
    number: int

    @property
    def label(self) -> str:
        """Its name."""
        return f"{self.scene.name}: {self.victim} at {self.call} {self.number}"


def points(ground: Ground, scene: Scene, chance: random.Random, first: Sequence[str] = ()) -> list[Point]:
    """Every point of a scene, in an order of chance in which no frequent call crowds out the rare ones.

    All those of backupd at the calls that are to come first do.
    """
    by_call, found = list[list[Point]](), list[Point]()
    for victim in scene.victims:
        for call, most in sorted(_calls(ground, scene, victim).items()):
            drawn = chance.sample([Point(scene, victim, call, number) for number in range(1, most + 1)], most)
            if victim == BACKUPD and call in first:
                found += drawn
            else:
                by_call.append(drawn)
    while by_call := [left for left in by_call if left]:
        found += [left.pop() for left in chance.sample(by_call, len(by_call))]
    return found


def mixed(ground: Ground, chance: random.Random, *, every: bool) -> Iterator[Point]:
    """The points of all scenes, so that any beginning of them has each scene by its share.

    With `every` each scene's begin with those that it wants all of.
    """
    left = {scene.name: scene for scene in scenes()}
    found: dict[str, list[Point]] = {}
    while left:
        scene = chance.choices(list(left.values()), [each.share for each in left.values()])[0]
        if scene.name not in found:
            found[scene.name] = points(ground, scene, chance, scene.every if every else ())
        if found[scene.name]:
            yield found[scene.name].pop(0)
        else:
            del left[scene.name]


def strike(ground: Ground, point: Point, injection: str, *, may_end_well: bool = True) -> str:
    """Runs the scene with that fault at the point, and judges. Raises Missed where the run ended before it."""
    state = point.scene.fresh(ground)
    arguments = ("-e", f"trace={point.call}", "-e", f"inject={point.call}:{injection}:when={point.number}")
    traced = ground.launcher.run(state.site, *point.scene.arguments, tracing=Tracing(point.victim, arguments))
    if not traced.struck:
        raise Missed
    assert traced.ended.code or may_end_well, "the run ended well, as if nothing had happened"
    said = point.scene.judge(state, traced.ended)
    shutil.rmtree(state.site.folder)
    return said


def _calls(ground: Ground, scene: Scene, victim: str) -> Mapping[str, int]:
    """How often each call is made in the scene, by a run that nothing befalls."""
    state = scene.fresh(ground)
    tracing = Tracing(victim, ("-e", f"trace={TOUCHING}"))
    traced = ground.launcher.run(state.site, *scene.arguments, tracing=tracing)
    assert traced.ended.code == 0, traced.ended.stderr
    shutil.rmtree(state.site.folder)
    return {call: most for call, most in traced.calls.items() if call != "execve"}  # strace's own way into a client
