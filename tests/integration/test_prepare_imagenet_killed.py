"""`kill -9` at many moments of `reste prepare imagenet`: never a half index, and the same digest in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import imagenet_sources as made
import pytest

# Forks of one process that has imported everything: each is killed at another call to the operating system
# (audit events and positioned writes), then the work is done again by a fork that may finish.
KILLER = """
import json, os, random, signal, sys
from pathlib import Path
from trainer.data.index import load_summary
from trainer.data.prepare import begun, targets
from trainer.data.prepare.imagenet import open_imagenet
from trainer.data.prepare.store import Options, store
from trainer.errors import DataError

source, form, moments, work = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
EVENTS = ("open", "os.rename", "os.link", "os.mkdir", "os.truncate", "os.remove", "os.listdir", "os.scandir")
left = None

def tick(event, *_):
    global left
    if left is not None and event in (*EVENTS, "write"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(tick)

def ticking(module, name, original):
    def call(*arguments):
        tick("write")
        result = original(*arguments)
        tick("write")
        return result
    setattr(module, name, call)

ticking(targets, "_write_all", targets._write_all)
ticking(begun.Begun, "_write", begun.Begun._write)

def prepare(root):
    options = Options(form, workers=2, shard_bytes=12_000)
    return store(open_imagenet(source, None, expect=None), source, root, options, expect=None).digests

def life(root, after):
    global left
    child = os.fork()
    if child == 0:
        left = after
        prepare(root)
        os._exit(0)
    return os.waitpid(child, 0)[1]

def events():
    global left
    prepare(work / "warm")
    left = 10**9
    prepare(work / "count")
    used, left = 10**9 - left, None
    return used

total = events()
killed = halves = 0
digests = set()
for number in range(moments):
    root = work / str(number)
    first = total * number // moments
    status = life(root, first)
    killed += os.WIFSIGNALED(status)
    status = life(root, random.Random(number).randrange(total)) if number % 3 == 0 else status
    try:
        load_summary(root)
    except DataError:
        halves += 1
    digests.add(json.dumps(prepare(root), sort_keys=True))
    assert not (root / "index" / "begun.jsonl").exists()
    assert not [path for path in root.rglob(".*")], "temporary files"
print(json.dumps([total, killed, halves, sorted(digests)]))
"""


@made.every_form
@pytest.mark.timeout(280)
def test_killed_at_any_moment_the_next_call_ends_in_the_same_digest(form: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    wanted = made.prepare(source, tmp_path / "whole", form=form).digests
    moments = 16
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(source), form, str(moments), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    total, killed, halves, digests = json.loads(done.stdout)
    assert total > 60
    assert killed == moments
    assert halves >= moments // 2, "a second life may come to its end"
    assert [json.loads(digest) for digest in digests] == [wanted]
