"A student: it begins as its teacher, learns where its path leads to, and says who taught it."

import pytest
import torch
from small_model import TINY, VOLUME, trained_by_command, xmodal

from xmodal.bridge import diffuse
from xmodal.core import InputError
from xmodal.job import Job
from xmodal.methods import get_method, parse_options
from xmodal.nets.build import build
from xmodal.sample import uniform
from xmodal.train import like_start, with_teacher
from xmodal.training.distil import Teacher
from xmodal.training.loop import Denoising, PairLoss, Recipe
from xmodal.training.model_folder import load_config, load_model, save_model

SMALL = (
    '--dataset phantom --size 32 --ch 8 --mults 1,2 --batch 4 --made-subjects 6 --made-voxel 6'
    ' --no-baseline --no-check --val-images 2 --val-pictures 0 --steps 6'
)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Folder, teacher and student: a bridge with an anchor."
    root = tmp_path_factory.mktemp('lessons')
    teacher, _ = trained_by_command(root, 'teacher', f'{SMALL} --method residual')
    words = f'{SMALL} --teacher {teacher} --teacher-steps 2 --seed 5'
    student, said = trained_by_command(root, 'student', words)
    assert 'method residual' in said
    return root, teacher, student


def test_a_student_learns_in_its_network_alone(pair):
    "Bridge and anchor are its teacher's to the bit; the network began there and is another."
    _, teacher, student = pair
    old, new = (load_model(v)[0].state_dict() for v in (teacher, student))
    assert list(old) == list(new)
    moved = {k for k in old if not torch.equal(old[k], new[k])}
    assert moved and all(k.startswith('net.') for k in moved)


def test_a_student_says_who_taught_it_and_is_drawn_by_its_own_steps(pair):
    student = pair[-1]
    config = load_config(student)
    assert config['training']['teacher']['teacher_steps'] == 2
    assert config['training']['teacher']['model'] == 'model'
    assert (config['data']['steps'], config['data']['tau']) == (2, 'zero')


def test_a_student_has_the_people_of_its_teacher(pair):
    "Whatever the seed: nobody is tested whom the teacher has learned from."
    _, teacher, student = pair
    was, now = (load_config(v)['training']['subjects'] for v in (teacher, student))
    assert (sorted(was['train']), sorted(was['test'])) == (
        sorted(now['train']),
        sorted(now['test']),
    )


@pytest.mark.parametrize('words', ['--teacher-steps 3', '--sample-steps 3'])
def test_a_run_goes_on_with_the_same_lessons_only(pair, words):
    root, teacher, _ = pair
    asked = f'{SMALL} --teacher {teacher} --teacher-steps 2 {words} --resume --name student'
    done = xmodal('train', *asked.split(), cwd=root)
    assert done.returncode == 2 and 'another' in done.stderr, done.stderr


REFUSED = {
    '--method regression': 'no path',
    '--init {teacher}': 'leave backbone latent, init',
    '--options sampler=euler': 'plain steps',
    '--tau markov': 'plain steps',
    '--ch 16': 'its ch is 8',
    '--source T2w': 'its source is T1w',
    '--smoke': 'smoke out',
    '--plan auto': 'smoke out',
    '--attention': 'its attention',
    '--name teacher': 'lies in runs/teacher',
    '--test-subjects {learned}': 'it has learned from',
    '--teacher-steps 1': '2 or more',
    '--pred x0': 'its pred is',
}


@pytest.mark.parametrize('words', REFUSED)
def test_what_cannot_be_taught_is_refused(pair, words):
    root, teacher, _ = pair
    learned = load_config(teacher)['training']['subjects']['train'][0]
    words_ = words.format(teacher=teacher, learned=learned)
    asked = f'{SMALL} --teacher {teacher} --name no {words_}'
    done = xmodal('train', *asked.split(), cwd=root)
    assert done.returncode == 2, done.stdout
    assert REFUSED[words] in done.stderr


def test_steps_of_no_teacher_are_refused(tmp_path):
    done = xmodal('train', *SMALL.split(), '--teacher-steps', '3', cwd=tmp_path)
    assert done.returncode == 2 and 'give teacher too' in done.stderr


def test_the_loss_asks_for_what_the_teacher_says():
    "Its error is that of the teacher's estimate at the teacher's time, and not of the target."
    den, told_by = (build('flow_noise', 1, net=dict(ch=8, mults=[1, 2], layers=1)) for _ in '12')
    teacher = Teacher(told_by.eval(), uniform(2), 3)
    g = torch.Generator().manual_seed(0)
    x0, y, eps = torch.randn(3, 4, 1, 16, 16, generator=g)
    t = torch.rand(4, generator=g)
    got = PairLoss(den.eval(), 'mse', 'x0', teacher=teacher)(x0, y, t, eps)
    told, at, noise = teacher(told_by, x0, y, t, eps)
    x = diffuse(den.bridge, told, y, at, noise)
    assert torch.allclose(got, (den(x, at, y) - told).square().mean(), rtol=1e-4)
    assert not torch.allclose(got, PairLoss(den, 'mse', 'x0')(x0, y, t, eps), rtol=1e-2)


def test_a_step_of_a_training_has_the_teacher():
    den, told_by = (build('flow_noise', 1, net=dict(ch=8, mults=[1, 2], layers=1)) for _ in '12')
    teacher = Teacher(told_by, uniform(2), 3)
    module = Denoising(den, get_method('i2sb'), Recipe(), None, teacher=teacher).loss_module()
    assert module.teacher is teacher and (module.loss, module.weight) == ('mse', 'x0')
    assert not teacher.train().training
    assert (
        module.teacher is teacher
        and Denoising(den, get_method('i2sb'), Recipe(), None).times is None
    )


def test_a_field_that_is_drawn_anew_in_training_is_not_for_a_student():
    "Teacher and student mix the same state."
    model = dict(method='cdtsde_any', channels=1, net=TINY['net'])
    den, told_by = build(**model), build(**model).eval()
    PairLoss(den.train(), teacher=Teacher(told_by, uniform(2), 2))(
        *torch.rand(2, 2, 1, 8, 8), *RAND
    )
    assert den.training and not den.bridge.training


RAND = torch.rand(2), torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    'method, options', [('bbdm', dict(start='marginal')), ('residual', dict(sampler='step'))]
)
def test_a_student_begins_with_all_noise_that_a_draw_has(tmp_path, method, options):
    "Without fresh noise nothing else tells its draws apart."
    model = dict(TINY, method=method)
    folder = (
        save_model(tmp_path / 'm', build(**model), model, VOLUME, {}, '# A model of tests') or 0
    )
    job = with_teacher(like_start(Job(teacher=str(folder or tmp_path / 'm'))))
    assert options.items() <= parse_options(job.options).items()
    assert (job.tau, job.sample_steps, job.method) == ('zero', 2, method)


def test_steps_that_look_back_are_refused(tmp_path):
    model = dict(TINY, method='ddpm')
    save_model(tmp_path / 'm', build(**model), model, VOLUME, {}, '# A model of tests')
    with pytest.raises(InputError, match='order'):
        with_teacher(like_start(Job(teacher=str(tmp_path / 'm'), options='order=2')))


def test_names_that_a_start_has_learned_from_are_said(pair):
    "Whoever begins with a model is told whom it may know of those who judge the run."
    root, teacher, _ = pair
    learned = load_config(teacher)['training']['subjects']['train']
    asked = f'{SMALL} --init {teacher} --name known --test-subjects {learned[0]}'
    done = xmodal('train', *asked.split(), cwd=root)
    assert done.returncode == 0, done.stderr
    assert 'has learned from people of these names: ' in done.stdout and learned[0] in done.stdout
    done = xmodal('train', *f'{SMALL} --name fresh --steps 1'.split(), cwd=root)
    assert done.returncode == 0 and 'these names' not in done.stdout


def test_strangers_validate_a_run_that_begins_with_a_model(tmp_path):
    "Training and test are named: of the rest, whom the first model knows takes no part."
    from types import SimpleNamespace
    from xmodal.train import judged_by_strangers

    model = dict(TINY, method='regression')
    known = dict(subjects=dict(train=['a', 'b'], val=['v'], test=['c']))
    save_model(tmp_path / 'm', build(**model), model, VOLUME, known, '# A model of tests')
    p = SimpleNamespace(init=str(tmp_path / 'm'), train_subjects='c', test_subjects='d')
    split = dict(train=['c'], val=['a', 'b', 'v', 'x'], test=['d'])
    found, line = judged_by_strangers(p, split)
    assert found == dict(split, val=['v', 'x'])
    assert line.startswith('a, b take no part') and 'v, x' in line
    for change in (dict(train_subjects=''), dict(test_subjects=''), dict(init='')):
        assert judged_by_strangers(SimpleNamespace(**{**vars(p), **change}), split) == (split, '')
    nobody = dict(split, val=['a', 'b'])  # better known people than none
    assert judged_by_strangers(p, nobody) == (nobody, '')


def test_a_check_makes_as_many_people_as_a_training(monkeypatch, capsys):
    import xmodal.data.check as module
    from xmodal.cli import main

    asked = {}

    def check(*_, **more):
        asked.update(more)
        raise InputError('enough')

    monkeypatch.setattr(module, 'check', check)
    assert main(['data', 'check', 'pelvis', '--root', 'made']) == 1
    assert asked['n'] == Job().made_subjects == 12
