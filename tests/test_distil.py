"A student: it begins as its teacher, learns where its path leads to, and says who taught it."

import pytest
import torch

from small_model import copied, trained_by_command, xmodal
from xmodal.bridge import diffuse
from xmodal.nets.build import build
from xmodal.sample import uniform
from xmodal.training.distil import Teacher
from xmodal.training.loop import Denoising, PairLoss, Recipe
from xmodal.training.model_folder import load_config, load_model

SMALL = (
    '--dataset phantom --size 32 --ch 8 --mults 1,2 --batch 4 --made-subjects 6 --made-voxel 6'
    ' --no-baseline --no-check --val-images 2 --val-pictures 0 --steps 6'
)
METHODS = ('residual', 'i2sb')


@pytest.fixture(scope='module', params=METHODS)
def pair(request, tmp_path_factory):
    "Folder, method, teacher and student."
    root = tmp_path_factory.mktemp(request.param)
    teacher, _ = trained_by_command(root, 'teacher', f'{SMALL} --method {request.param}')
    words = f'{SMALL} --teacher {teacher} --teacher-steps 2'
    student, said = trained_by_command(root, 'student', words)
    assert f'method {request.param}' in said
    return root, request.param, teacher, student


def test_a_student_learns_in_its_network_alone(pair):
    "Bridge and anchor are its teacher's to the bit; the network began there and is another."
    _, _, teacher, student = pair
    old, new = (load_model(v)[0].state_dict() for v in (teacher, student))
    assert list(old) == list(new)
    moved = {k for k in old if not torch.equal(old[k], new[k])}
    assert moved and all(k.startswith('net.') for k in moved)


def test_a_student_says_who_taught_it_and_is_drawn_by_its_own_steps(pair):
    _, _, _, student = pair
    config = load_config(student)
    assert config['training']['teacher']['teacher_steps'] == 2
    assert config['training']['teacher']['model'] == 'model'
    assert (config['data']['steps'], config['data']['tau']) == (2, 'zero')


def test_a_student_that_was_stopped_goes_on_and_another_teacher_is_refused(pair):
    root, method, teacher, student = pair
    words = f'{SMALL} --teacher {teacher} --teacher-steps 3 --resume --name student'
    from xmodal.train import train_command

    done = copied(lambda *w: train_command([*w]), *words.split(), cwd=root)
    assert done.returncode != 0 and 'teacher' in done.stderr + done.stdout


REFUSED = {
    '--method regression': 'no path',
    '--init {teacher}': 'leave backbone latent, init',
    '--options sampler=euler': 'plain steps',
    '--tau markov': 'plain steps',
    '--ch 16': 'another network',
    '--teacher-steps 1': '2 or more',
    '--pred x0': 'its pred is',
}


@pytest.mark.parametrize('pair', ['i2sb'], indirect=True)
@pytest.mark.parametrize('words', REFUSED)
def test_what_cannot_be_taught_is_refused(pair, words):
    root, _, teacher, _ = pair
    asked = f'{SMALL} --teacher {teacher} --name no {words.format(teacher=teacher)}'
    done = xmodal('train', *asked.split(), cwd=root)
    assert done.returncode == 2, done.stdout
    assert REFUSED[words] in done.stderr


def test_one_step_of_a_bridge_that_begins_at_the_source_is_refused(pair):
    root, method, teacher, _ = pair
    asked = f'{SMALL} --teacher {teacher} --name one --sample-steps 1'
    done = xmodal('train', *asked.split(), cwd=root)
    assert (done.returncode == 2) == (method == 'i2sb'), done.stderr
    assert ('regression already' in done.stderr) == (method == 'i2sb')


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
    from xmodal.methods import get_method

    module = Denoising(den, get_method('i2sb'), Recipe(), None, teacher=teacher).loss_module()
    assert module.teacher is teacher and (module.loss, module.weight) == ('mse', 'x0')
    assert not teacher.train().training
