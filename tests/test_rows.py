"Every row of the table of methods, and every experiment, in its smallest form."

import json, os, shutil, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from xmodal.methods import methods

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def rows(request, tmp_path_factory):
    """Every method that a selected test asks for, trained and resumed by papermill in one process;
    method -> (run, what went wrong).
    """
    names = sorted(
        {
            i.callspec.params['method']
            for i in request.session.items
            if i.originalname == 'test_every_method_trains_resumes_and_translates'
        }
    )
    runs, report = (
        {n: f'test-row-{n}' for n in names},
        tmp_path_factory.mktemp('rows') / 'report.json',
    )
    r = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tests' / 'run_rows.py'),
            str(report),
            *[f'{n}={v}' for n, v in runs.items()],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENV,
    )
    said = json.loads(report.read_text()) if report.exists() else {}
    yield {
        n: (ROOT / 'runs' / v, said.get(n, r.stderr[-3000:] or 'was not reached'))
        for n, v in runs.items()
    }
    for v in runs.values():
        shutil.rmtree(ROOT / 'runs' / v, ignore_errors=True)


@pytest.mark.parametrize('method', sorted(methods))
def test_every_method_trains_resumes_and_translates(method, rows):
    """The model folder says everything: the translator is told nothing, and does what the run was
    evaluated with.
    """
    from xmodal.methods import calls
    from xmodal.translate import Translator

    run, wrong = rows[method]
    assert not wrong, wrong
    m, config = (
        json.loads((run / 'metrics.json').read_text()),
        json.loads((run / 'model' / 'config.json').read_text()),
    )
    assert m['parameters']['method'] == method == config['model']['method'] and m['nfe'] == calls(
        method, m['steps']
    )
    if methods[method].adversarial:  # critics are in the checkpoint and not in the model folder
        from safetensors.torch import load_file

        kept = run / 'checkpoints' / 'step-000004'
        assert {'critics.safetensors', 'optim_critics.safetensors'} <= {
            f.name for f in kept.iterdir()
        }
        assert set(load_file(run / 'model' / 'model.safetensors')) == set(
            load_file(kept / 'model.safetensors')
        )
        head, row = (run / 'log.csv').read_text().splitlines()[:2]
        assert {'loss_g', 'loss_d', 'r1'} <= set(head.split(',')) and row.split(',')[
            head.split(',').index('loss_d')
        ]
    tr = Translator.from_pretrained(run / 'model', 'cpu')
    volume = nib.Nifti1Image(
        np.random.default_rng(0).random((20, 24, 3)).astype(np.float32) * 100,
        np.diag([5.0, 5, 6, 1]),
    )
    out = tr.translate(volume)
    assert out.shape == volume.shape and np.isfinite(out.get_fdata()).all()
    one, two = out.get_fdata(), tr.translate(volume, batch=2).get_fdata()
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-3 * abs(one).max())
