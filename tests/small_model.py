"""What many tests begin with: the descriptions of a small model, of volumes and of images, and one
whose network answers with its source; and a training by its command.
"""

import subprocess
import sys

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


def trained_by_command(root, name, words):
    "Train in this folder, in a process of its own; the model's folder, and what was printed."
    done = subprocess.run(
        [sys.executable, '-m', 'xmodal.train', '--name', name, *words.split()],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root / 'runs' / name / 'model', done.stdout
