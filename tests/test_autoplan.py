"A plan from the data: what it decides, what it leaves alone, and that it runs."

import json
import shutil

import numpy as np
import pytest

from test_data_faults import people, pictures
from test_main_job import ROOT, run_name  # noqa: F401  (a fixture)
from xmodal.core import InputError
from xmodal.train import Job, plan, train_command
from xmodal.training.autoplan import choose, fits, kind_of_values, Known, known_of
from xmodal.data.layouts import find_records

GROUP = r'^(s\d+)_'
NAMES = [f's{k}_{i}' for k in range(6) for i in range(2)]


@pytest.fixture
def folder(tmp_path):
    pictures(tmp_path, NAMES)
    return dict(
        dataset='folder', root=str(tmp_path), source='a', target='b', group=GROUP, check=False
    )


def test_facts_are_those_of_the_files(tmp_path):
    "People, pictures and sizes; of volumes also the distances."
    pictures(tmp_path / 'flat', NAMES)
    flat = known_of(find_records('folder', tmp_path / 'flat', 'a', 'b', GROUP), 3.0, 'cpu')
    assert (flat.people, flat.images, flat.rows, flat.columns) == (6, 12, 32, 32)
    assert (flat.spacing, flat.gpu, flat.minutes) == (0, 0, 3.0)
    people(tmp_path / 'deep')
    records = find_records('bids', tmp_path / 'deep', 'T1w', 'T2w')
    deep = known_of(records, 3.0, 'cpu')
    import nibabel as nib

    img = nib.load(records[0].target)
    assert deep.people == 2 and deep.images in {2 * n for n in img.shape}
    assert deep.spacing == pytest.approx(min(img.header.get_zooms()), abs=1e-3)


def test_what_is_decided_stays(folder, capsys):
    "A parameter that differs from its default is left alone and named so."
    p = plan(Job(**folder, plan='auto', method='regression', name='never', ch=12, device='cpu'))
    out = capsys.readouterr().out
    assert p.ch == 12 and p.size == 0 and p.patch == 0 and p.augment == 'light'
    assert p.terms == '' and p.val_images == 30  # small pictures: no edges, and more validate
    assert 'plan auto: 4 people' in out or 'plan auto: 5 people' in out
    assert 'ch         12       decided by hand' in out
    assert p.chosen and p.chosen in out


def test_a_default_that_was_typed_stays(folder, capsys):
    "What is typed is decided by hand, whatever it is; from Python `by_hand` names it."
    from xmodal.job import job_of, parser_of_jobs

    words = [f'--{k.replace("_", "-")}={v}' for k, v in folder.items() if k != 'check']
    words += ['--plan', 'auto', '--augment', 'none', '--mults', '1,2,2', '--batch', '8']
    words += ['--method', 'regression', '--name', 'never', '--device', 'cpu', '--no-check']
    p = plan(job_of(parser_of_jobs().parse_args(words)))
    assert (p.augment, p.mults, p.batch) == ('none', '1,2,2', 8)
    assert 'augment    none     decided by hand' in capsys.readouterr().out
    asked = dict(plan='auto', method='regression', name='never', device='cpu')
    assert plan(Job(**folder, **asked)).augment == 'light'
    assert plan(Job(**folder, **asked, by_hand='augment')).augment == 'none'
    with pytest.raises(InputError, match='by_hand'):
        plan(Job(**folder, **asked, by_hand='lr'))
    with pytest.raises(InputError, match='give plan auto'):
        plan(Job(**folder, method='regression', name='never', by_hand='augment'))


def test_what_is_decided_takes_part():
    "Crops, depth and steps are those of the pictures that are left."
    f = Known(40, 360, 256, 256, 5.0, 1.0, 5.0)
    free = {c.name: c.value for c in choose(f)}
    assert free['patch'] == 96
    for size in (16, 32, 64):
        got = {c.name: c for c in choose(f, dict(size=size))}
        assert got['patch'].value == 0 and f'samples have {size} pixels' in got['mults'].why
        assert 'spacing' not in got
    got = {c.name: c.value for c in choose(f, dict(spacing=4.0))}
    assert got['patch'] == 0 and got['mults'] == '1,2,2'  # 64 pixels of 4 mm


@pytest.mark.parametrize('memory, least', [(0.0, 16), (139.0, 16), (2.0, 1), (0.1, 1)])
def test_a_step_fits_into_the_memory(memory, least):
    f = Known(40, 360, 256, 256, 60.0, 1.0, 5.0, gpu=8.0, memory=memory)
    got = {c.name: c.value for c in choose(f)}
    assert least <= got['batch'] <= 16
    assert got['batch'] < 16 or least == 16
    assert fits(f, got['ch'], got['patch'] or 256, got['batch']) or got['batch'] == 1


def test_values_of_a_ct_and_labels_are_seen(tmp_path):
    "A rule of intensities is chosen where the usual one would be wrong, and nowhere else."
    import nibabel as nib

    rng = np.random.default_rng(0)
    kinds = dict(
        ct=(rng.integers(-1000, 2000, (9, 9, 9)), 'hu'),
        mr=(rng.integers(0, 900, (9, 9, 9)), ''),
        labels=(rng.integers(0, 5, (9, 9, 9)), 'labels:0:4'),
        signed=(rng.normal(0, 1, (9, 9, 9)), ''),
    )
    for name, (values, kind) in kinds.items():
        path = tmp_path / f'{name}.nii.gz'
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)
        assert kind_of_values([path]) == kind, name
    (tmp_path / 'labels.nii.gz').rename(tmp_path / 'some.nii.gz')
    high = np.zeros((9, 9, 9), np.float32)
    high[0, 0, 0], high[0, 0, 1] = 7, 2
    nib.save(nib.Nifti1Image(high, np.eye(4)), tmp_path / 'more.nii.gz')
    both = [tmp_path / 'some.nii.gz', tmp_path / 'more.nii.gz']
    assert kind_of_values(both) == 'labels:0:7'  # not in the first file
    assert kind_of_values([both[0], tmp_path / 'mr.nii.gz']) == ''
    f = Known(40, 360, 64, 64, 5.0, source_kind='labels:0:4', target_kind='labels:0:4')
    assert [c.name for c in choose(f) if 'window' in c.name] == ['target_window']


@pytest.mark.parametrize(
    'asked, steps, minutes',
    [
        (dict(steps=77), 77, 0),
        (dict(epochs=3), 400, 0),
        (dict(minutes=0.01), 400, 0.01),
    ],
)
def test_the_budget_is_one(folder, asked, steps, minutes):
    "What was asked for wins, and no second budget is beside it."
    p = plan(Job(**folder, plan='auto', method='regression', name='never', device='cpu', **asked))
    assert (p.steps, p.minutes) == (steps, minutes)


def test_few_pictures_end_before_the_minutes(folder):
    "Twelve small pictures are learned by heart long before an hour."
    p = plan(
        Job(**folder, plan='auto', method='regression', name='never', device='cpu', minutes=60.0)
    )
    assert p.minutes == 0 and 0 < p.steps < 2000


@pytest.mark.parametrize('wrong', [dict(plan='best'), dict(plan='auto', net='unet3d')])
def test_what_it_cannot_plan_is_refused(folder, wrong):
    with pytest.raises(InputError, match='auto'):
        plan(Job(**folder, method='regression', name='never', **wrong))


@pytest.mark.parametrize('gpu', [0.0, 12.0, 139.0])
def test_every_plan_holds_together(gpu):
    "Crops fit into the pictures; more time is never a smaller network or fewer pixels."
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = rng.integers(16, 3000, 2).tolist()
        flat = bool(rng.integers(2))
        more = dict(spacing=1.0, distance=float(rng.uniform(0.5, 8))) if flat else {}
        n = int(rng.integers(2, 100))
        before = None
        for minutes in (0.2, 2.0, 20.0, 200.0):
            f = Known(n, n * 10, rows, columns, minutes, gpu=gpu, **more)
            got = {c.name: c.value for c in choose(f)}
            side = got['size'] or max(rows, columns)
            assert 0 <= got['patch'] <= side + 8
            now = got['ch'], side
            assert before is None or (now[0] >= before[0] or now[1] > before[1])
            before = now
            assert got['val_every'] >= 1 and ('steps' in got) != ('minutes' in got)


def test_it_trains_and_is_kept_with_the_model(folder, run_name):
    "From the command line to a model that says how it was planned."
    words = [f'--{k.replace("_", "-")}={v}' for k, v in folder.items()]
    more = ['--plan', 'auto', '--steps', '12', '--method', 'regression', '--name', run_name]
    assert train_command([*words, *more, '--ch', '8', '--device', 'cpu']) == 0
    config = json.loads((ROOT / 'runs' / run_name / 'model' / 'config.json').read_text())
    assert config['training']['plan'][0].startswith('plan auto')
    assert config['data']['size'] == 32
    shutil.rmtree(ROOT / 'runs' / run_name)


def test_a_term_is_chosen_for_a_regression_alone(folder, capsys):
    "What was measured for a regression is not taken for a bridge, and one's own terms stay."
    asked = dict(plan='auto', name='never', ch=12, device='cpu')
    assert plan(Job(**folder, **asked, method='i2sb')).terms == ''
    assert 'terms' not in capsys.readouterr().out
    assert plan(Job(**folder, **asked, method='regression', terms='ssim:0.1')).terms == 'ssim:0.1'


def test_edges_count_where_samples_are_large_enough():
    "A term on edges cost decibels on crops of 32 pixels and brought some on slices."
    terms = lambda **f: {c.name: c.value for c in choose(Known(40, 360, minutes=5.0, **f))}['terms']
    assert terms(rows=32, columns=32) == ''
    assert terms(rows=256, columns=256) == 'gradient:0.5' == terms(rows=64, columns=64)


def test_more_images_validate_where_they_are_small():
    def looks(**f):
        got = {c.name: c.value for c in choose(Known(40, 360, minutes=5.0, **f))}
        return got['val_images']

    assert looks(rows=256, columns=256) == 16 < looks(rows=32, columns=32) <= 64


def test_little_to_learn_from_is_bent_as_few_people_are():
    bent = lambda **f: {c.name: c.value for c in choose(Known(minutes=5.0, **f))}['augment']
    assert bent(people=107, images=321, rows=32, columns=32) == 'light'
    assert bent(people=107, images=321, rows=256, columns=256) == 'none'
    assert bent(people=5, images=321, rows=256, columns=256) == 'light'
