"""What many tests begin with: the descriptions of a small model, of volumes and of images, and one
whose network answers with its source; a command in a copy of this process; and a training by it.
"""

import os
import subprocess
import sys
import tempfile
import traceback
import warnings

import torch

from xmodal.nets.build import build
from xmodal.translate import Translator

TINY = dict(method='cdtsde', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
VOLUME = dict(
    kind='volume',
    dataset='test',
    source='T1w',
    target='T2w',
    size=32,
    spacing=3.0,
    source_window='0:1000',
    target_window=[0.0, 500.0],
    target_window_rule='percentile',
    channels=[1, 1],
    steps=1,
    tau='markov',
)
IMAGE = dict(
    VOLUME,
    kind='image',
    source_window='dtype',
    target_window=[0.0, 255.0],
    target_window_rule='dtype',
    target_dtype='uint8',
    fit='shrink',
)


class Echo(torch.nn.Module):
    "A network whose answer is the source."

    config = dict(channels=1)

    def forward(self, x, t, y, ctx=None, side=None):
        return y


def echo(base, channels=1, **data):
    "A translator whose network answers with the source. base: VOLUME or IMAGE."
    den = build('cdtsde', channels, net=TINY['net'], pred='x0')
    den.net = Echo()
    described = dict(model=dict(method='cdtsde', channels=channels), data={**base, **data})
    return Translator(den.eval(), described)


def copied(work, *words, cwd=None, env=None, argv=()):
    """Call work(*words) in a copy of this process: exit code, output and errors, as a command has them.

    It has its own memory, streams, folder and environment, as if it were started anew, but no
    imports to wait for. cwd: folder; env: variables that are added; argv: what sys.argv holds.
    """
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(_work_in_the_copy(work, words, (out, err), cwd, env or {}, argv))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [(f.seek(0), f.read())[1] for f in (out, err)]
    return subprocess.CompletedProcess(words, code, *said)


def _work_in_the_copy(work, words, streams, cwd, env, argv):
    "The copy's side of `copied`: its exit code."
    code = 1
    try:
        for number, f in enumerate(streams, 1):
            os.dup2(f.fileno(), number)
        sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)
        warnings.resetwarnings()  # pytest collects them
        warnings._showwarnmsg_impl = lambda w: sys.stderr.write(warnings._formatwarnmsg(w))
        sys.argv = [*map(str, argv)] or sys.argv
        os.chdir(cwd or '.')
        os.environ.update(env)
        said = work(*map(str, words))
        code = said if isinstance(said, int) else 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    for f in (sys.stdout, sys.stderr):
        f.flush()
    return code


def xmodal(*words, **where):
    "The command xmodal in a copy of this process; where: as for `copied`."
    from xmodal.cli import main

    return copied(lambda *w: main([*w]), *words, **where)


# simulated people of this process: many tests ask for the same
MADE = tempfile.TemporaryDirectory()


def with_made_people(root):
    "Let what is simulated below this folder be found there by the next test too."
    if not (root / 'data').exists():
        (root / 'data').symlink_to(MADE.name)


def trained_by_command(root, name, words):
    "Train in this folder, in a copy of this process; the model's folder, and what was printed."
    from xmodal.train import train_command

    with_made_people(root)
    done = copied(lambda *w: train_command([*w]), '--name', name, *words.split(), cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return root / 'runs' / name / 'model', done.stdout
