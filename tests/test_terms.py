"Terms beside a method's loss: each does what it says, on every kind of row, and a stop changes nothing."

import json

import numpy as np
import pytest
import torch

from test_best import Few
from test_plans import QUIET, Stops, made, trained, weights
from xmodal.core import InputError
from xmodal.train import Job, plan, recipe_of
from xmodal.training.adversarial import fit
from xmodal.nets.build import build
from xmodal.training.loop import Draws, Recipe, train
from xmodal.training.model_folder import save_model
from xmodal.training.terms import FIELD_FUNCTIONS, FUNCTIONS, open_features

EVERY = ','.join(f'{k}:0.5' for k in FUNCTIONS)
SHORT = dict(steps=4, batch=2, lr=1e-3)


class Heads(Few):
    "Pictures of 32 x 32 pixels with air around, and a hole inside."

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(self.first + i)
        y, x0 = torch.full((2, 1, 32, 32), -1.0)
        y[:, 4:-4, 4:-4] = torch.rand(1, 24, 24, generator=g)
        x0[:, 4:-4, 4:-4] = 0.5 - y[:, 4:-4, 4:-4]
        x0[:, 14:18, 14:18] = -1.0
        return dict(y=y, x0=x0, i=i)

    def select(self, people):
        kept = Heads(self.first)
        kept.subjects = np.array([v for v in self.subjects if v in set(people)])
        return kept


class StopsHere(Stops, Heads):
    "The same, interrupted after so many pictures."


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_term_changes_what_is_learned(tmp_path, name):
    "Each, alone, moves the weights elsewhere; and it is no part of the model."
    without, _ = trained(tmp_path / 'without', Recipe(**SHORT), Heads())
    with_it, _ = trained(tmp_path / 'with', Recipe(**SHORT, terms=f'{name}:1'), Heads())
    assert not torch.equal(weights(without), weights(with_it))
    assert list(without.state_dict()) == list(with_it.state_dict())


def test_a_stop_changes_nothing(tmp_path):
    "A run with terms that is interrupted ends with the bits of one that is not."
    r = Recipe(**SHORT, terms=EVERY, patch=16)
    whole, _ = trained(tmp_path / 'whole', r, Heads())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', r, StopsHere(2 * 3), save_every=1)
    assert any((tmp_path / 'parts' / 'checkpoints').iterdir())
    again, _ = trained(tmp_path / 'parts', r, Heads(), resume=True)
    assert torch.equal(weights(whole), weights(again))


def test_other_terms_are_another_run(tmp_path):
    "A checkpoint is not continued with terms that it was not started with."
    trained(tmp_path, Recipe(**SHORT, terms='l1:1'), Heads(), save_every=2)
    with pytest.raises(InputError, match='terms'):
        trained(tmp_path, Recipe(**SHORT, terms='l1:2'), Heads(), resume=True)


def test_the_body_is_cut_with_the_picture():
    "A crop has the body of its own place, found on the whole picture."
    data = Heads()
    whole, cut = Draws(data, body=True), Draws(data, body=True, patch=16)
    side = data[0]['x0'].shape[-1]
    for n in range(6):
        body = whole[n]['body']
        assert body.dtype == torch.bool and body.shape == (1, side, side)
        assert body[0, 15, 15] and not body[0, 0, 0] and body.sum() == 24 * 24
        part = cut[n]
        assert part['body'].shape == (1, 16, 16)
        assert torch.equal(part['body'], part['y'] > -0.8)  # the source has no hole
    assert 'body' not in Draws(data)[0]


@pytest.mark.parametrize('method', ['pix2pix', 'selfrdb', 'syndiff', 'dtfnet'])
def test_rows_with_critics_take_them(tmp_path, method):
    "The generator's loss grows by the term: an enormous weight is seen in the log."
    from xmodal.nets.build import build

    tiny = dict(method=method, channels=1, net=dict(ch=8, mults=[1, 2], layers=1), arch='unet')
    seen = {}
    for terms in ('', 'l1:1000'):
        torch.manual_seed(0)
        den = build(**tiny)
        log = fit(
            den,
            Heads(),
            tmp_path / (terms or 'none'),
            method,
            Recipe(steps=1, batch=2, terms=terms),
            tiny,
            log_every=1,
            **QUIET,
        )
        seen[terms] = float(log['loss_g'].iloc[-1])
    assert seen['l1:1000'] > seen[''] + 10


@pytest.mark.parametrize('method', ['cdtsde', 'i2sb', 'ddbm_vp', 'ensemble', 'residual'])
def test_rows_of_all_kinds_take_them(tmp_path, method):
    "Bridges, rows of two draws, rows with an anchor."
    from xmodal.engine import RowPlan, train_row

    model = dict(method=method, channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
    found = []
    for terms in ('', EVERY):
        row = RowPlan(
            method, model, Recipe(**SHORT, terms=terms), tmp_path / (terms or 'none'), device='cpu'
        )
        found.append(weights(train_row(row, Heads()).den))
    assert not torch.equal(*found)


# ---- frozen networks


class Halves(torch.nn.Module):
    def forward(self, v):
        return v[..., ::2], v * 2


def torchscript(folder):
    torch.jit.script(Halves()).save(str(folder / 'seen.pt'))
    return folder / 'seen.pt'


def own(folder):
    save_model(
        folder / 'own',
        made(),
        dict(method='regression', channels=1, net=dict(ch=8, mults=[1, 2], layers=1)),
        {},
    )
    return folder / 'own'


def autoencoder(folder):
    from xmodal.core import mend_torchvision

    mend_torchvision()
    from diffusers import AutoencoderKL

    net = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=32)
    net.save_pretrained(folder / 'vae', safe_serialization=True)
    return folder / 'vae'


def timms(folder):
    from xmodal.core import mend_torchvision

    mend_torchvision()
    import timm
    from safetensors.torch import save_file

    there = folder / 'timm'
    there.mkdir()
    net = timm.create_model('resnet10t', num_classes=3)
    save_file(net.state_dict(), there / 'model.safetensors')
    cfg = dict(input_size=[3, 64, 64], mean=[0.5] * 3, std=[0.5] * 3)
    config = dict(architecture='resnet10t', num_classes=3, pretrained_cfg=cfg)
    (there / 'config.json').write_text(json.dumps(config))
    return there


PLACES = dict(torchscript=torchscript, own=own, autoencoder=autoencoder, timm=timms)


@pytest.mark.parametrize('place', PLACES)
def test_a_frozen_network_looks(tmp_path, place):
    "From each of the four places: no error for the truth, a gradient for anything else, none learned."
    from xmodal.training.loop import terms_of

    path = PLACES[place](tmp_path)
    terms = terms_of(Recipe(terms='features:1', features=str(path)))
    want = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(terms(want, want), torch.zeros(2))
    got = (want + 0.3).requires_grad_()
    error = terms(got, want)
    error.sum().backward()
    assert (error > 0).all() and got.grad.abs().sum() > 0
    assert not any(v.requires_grad for v in terms.net.parameters())
    block = torch.stack([want, want.flip(0)], 2)
    assert terms(block, block).shape == (2,)


def test_a_frozen_network_is_known_again(tmp_path):
    "A moved network is the same; another one is another run."
    import shutil

    from xmodal.engine import RowPlan, train_row

    path = torchscript(tmp_path)
    moved = tmp_path / 'elsewhere.pt'
    shutil.copyfile(path, moved)
    model = dict(method='regression', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
    r = lambda p: Recipe(**SHORT, terms='features:1', features=str(p))
    row = lambda p, **k: RowPlan(
        'regression', model, r(p), tmp_path / 'run', device='cpu', save_every=2, provenance={}, **k
    )
    train_row(row(path), Heads())
    train_row(row(moved, resume=True), Heads())
    torch.jit.script(torch.nn.Identity()).save(str(moved))
    with pytest.raises(InputError, match='features'):
        train_row(row(moved, resume=True), Heads())


# ---- what is asked for


@pytest.mark.parametrize(
    'words, features, told',
    [
        ('l3:1', '', 'l1'),
        ('l1:0', '', 'positive'),
        ('l1:x', '', 'number'),
        ('features:1', '', 'FOLDER'),
        ('l1:1', 'somewhere', 'FOLDER'),
    ],
)
def test_what_does_not_fit_is_refused(words, features, told):
    with pytest.raises(InputError, match=told):
        plan(Job(method='regression', terms=words, features=features, name='never'))


def test_a_folder_that_is_no_network_is_refused(tmp_path):
    with pytest.raises(InputError, match='no network there'):
        open_features(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(InputError, match='unknown kind'):
        open_features(tmp_path)
    (tmp_path / 'x.pt').write_bytes(b'nothing')
    with pytest.raises(InputError, match='TorchScript'):
        open_features(tmp_path / 'x.pt')


def field_of(den):
    "The field of a trained denoiser in the middle of its path, over 32 x 32 pixels."
    mix = den.bridge.mix.eval()
    with torch.no_grad():
        return mix(torch.tensor(0.5, dtype=torch.float64), torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize('name', FIELD_FUNCTIONS)
def test_a_punished_field_stays_smooth(tmp_path, name):
    "The more a field is punished for its shape, the less shape it takes, and it is no less a field."
    model = dict(method='cdtsde', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
    ended = []
    for weight in ('', f'{name}:100'):
        r = Recipe(steps=12, batch=4, lr=1e-2, mix_lr=1.0, terms=weight)
        torch.manual_seed(0)
        den = build(**model)
        train(den, Heads(), tmp_path / (weight or 'none'), 'cdtsde', r, model, **QUIET)
        ended.append(float(FIELD_FUNCTIONS[name](field_of(den))))
    assert ended[0] > 5 * ended[1] >= 0


def test_terms_of_a_field_need_a_field_that_learns():
    "Refused where nothing learns; the baseline, which has none, goes without; latents may."
    for method in ('i2sb', 'cdtsde_linear'):
        with pytest.raises(InputError, match='no field that learns'):
            plan(Job(method=method, terms='l1:1,field-bend:0.1', name='never'))
    with pytest.raises(InputError, match='no field that learns'):
        plan(Job(method='dossr', terms='field-bend:1', backbone='latent', name='never'))
    p = plan(Job(method='cdtsde', terms='l1:1,field-bend:0.1', name='never'))
    assert recipe_of(p, 'cdtsde').terms == 'l1:1,field-bend:0.1'
    assert recipe_of(p, 'regression').terms == 'l1:1'


def test_the_baseline_gets_the_same(capsys):
    "As augmentation: what is asked for beside the recipe is given to both."
    p = plan(Job(method='i2sb', terms='l1:0.5', name='never'))
    assert recipe_of(p, 'regression').terms == recipe_of(p, 'i2sb').terms == 'l1:0.5'
    assert 'terms l1:0.5' in capsys.readouterr().out
