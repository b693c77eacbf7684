"""What a command brings into memory before it works. Seconds depend on the machine; names of modules
do not.
"""

import subprocess
import sys

import nibabel as nib
import numpy as np

from small_model import TINY, VOLUME
from xmodal.nets.build import build
from xmodal.training.model_folder import save_model

# the command in this process, then the packages that lie in memory
CODE = """
import sys
from xmodal.cli import main
sys.argv[0] = 'xmodal'
try:
    main()
finally:
    print('LOADED', *sorted(name for name in sys.modules if name.count('.') < 2))
"""


def packages(*words):
    "Call the command xmodal in a process of its own; the modules that it has imported."
    cmd = [sys.executable, '-W', 'ignore', '-c', CODE, *map(str, words)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split('LOADED')[-1].split())


def test_help_needs_neither_torch_nor_numpy():
    found = packages('--help')
    assert 'xmodal.cli' in found
    assert not found & {'torch', 'numpy', 'diffusers', 'scipy', 'pandas', 'matplotlib', 'nibabel'}


def test_a_scan_is_translated_without_what_only_trainings_and_reports_need(tmp_path):
    save_model(tmp_path / 'model', build(**TINY), TINY, VOLUME, {}, '# A model of tests\n')
    scan = np.random.default_rng(0).uniform(0, 1000, (20, 20, 2)).astype('float32')
    nib.save(nib.Nifti1Image(scan, np.diag([3.0, 3, 3, 1])), tmp_path / 'in.nii.gz')
    found = packages(
        'translate', tmp_path / 'model', tmp_path / 'in.nii.gz', tmp_path / 'out.nii.gz', '--force'
    )
    assert (tmp_path / 'out.nii.gz').exists() and {'torch', 'diffusers'} <= found
    heavy = {'transformers', 'torchvision', 'torchmetrics', 'open_clip', 'monai', 'sympy'}
    heavy |= {'torch._dynamo', 'pandas', 'matplotlib', 'skimage', 'scipy.stats', 'scipy.optimize'}
    assert not found & heavy
