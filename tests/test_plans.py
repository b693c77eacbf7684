"Recipes as a whole, budgets, and runs that are changed on their way."

from types import SimpleNamespace
from dataclasses import asdict

import numpy as np
import pytest
import torch

from test_best import Few
from xmodal.core import InputError
from xmodal.methods import methods, published_recipes, recipe_for
from xmodal.nets.build import build
from xmodal.train import Job, dropout_of, plan, recipe_of
from xmodal.training.adversarial import fit
from xmodal.training.loop import Recipe, lr_at, train

TINY = dict(method='regression', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
QUIET = dict(device='cpu', progress=False)


def made(seed=0, **net):
    torch.manual_seed(seed)
    return build(**{**TINY, 'net': TINY['net'] | net})


def trained(out, recipe, data=None, **how):
    "A small network after a training, and its log."
    den = made()
    return den, train(den, data or Few(), out, 'regression', recipe, TINY, **{**QUIET, **how})


def weights(den):
    return torch.cat([v.flatten() for v in den.state_dict().values()])


KINDS = dict(
    adamw=torch.optim.AdamW,
    adam=torch.optim.Adam,
    radam=torch.optim.RAdam,
    rmsprop=torch.optim.RMSprop,
)


@pytest.mark.parametrize('kind', KINDS)
def test_each_optimiser_is_pytorchs_and_a_stop_changes_nothing(tmp_path, kind):
    "The trainer's optimiser is that class, with the recipe's numbers; continuing gives the same."
    from xmodal.training.loop import Denoising

    more = dict(betas=(0.8, 0.95), weight_decay=0.03)
    r = Recipe(steps=8, batch=2, optimiser=kind, lr=1e-3, **more)
    (opt,) = Denoising(made(), methods['regression'], r, Few()).opts.values()
    assert type(opt) is KINDS[kind] and opt.param_groups[0]['weight_decay'] == 0.03
    assert opt.param_groups[0].get('betas', (0.8, 0.95)) == (0.8, 0.95)
    whole, _ = trained(tmp_path / 'whole', r)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', r, Stops(2 * 5), save_every=2)
    again, _ = trained(tmp_path / 'parts', r, resume=True)
    assert torch.equal(weights(whole), weights(again))


class Stops(Few):
    "Interrupted after so many images."

    def __init__(self, after):
        super().__init__()
        self.left = after

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def test_optimisers_schedules_and_averages_make_a_difference(tmp_path):
    "No two of these recipes end at the same weights."
    some = [dict(optimiser=k) for k in KINDS]
    some += [dict(schedule=k) for k in ('constant', 'polynomial')]
    some += [dict(ema=0.9), dict(ema=0.9, ema_start=4), dict(ema=0.9, ema_every=3)]
    some += [dict(weight_decay=0.5), dict(betas=(0.5, 0.9)), dict(clip=0.01), dict(warmup=0)]
    ends = []
    for k, more in enumerate(some):
        r = Recipe(**{**dict(steps=12, batch=2, lr=1e-2, warmup=1), **more})
        ends.append(weights(trained(tmp_path / str(k), r)[0]))
    for i, a in enumerate(ends):
        for b in ends[:i]:
            assert not torch.equal(a, b), (some[i], i)


def test_an_average_begins_late(tmp_path):
    "With a start behind the end the average is the network itself."
    r = dict(steps=10, batch=2, lr=1e-2)
    late = trained(tmp_path / 'a', Recipe(**r, ema=0.99, ema_start=10))[0]
    none = trained(tmp_path / 'b', Recipe(**r))[0]
    assert torch.allclose(weights(late), weights(none), rtol=0, atol=1e-6)
    begun = trained(tmp_path / 'c', Recipe(**r, ema=0.99, ema_start=5))[0]
    assert not torch.allclose(weights(begun), weights(none), rtol=0, atol=1e-4)


def recipe(method, row=None, **how):
    return recipe_of(SimpleNamespace(**asdict(Job(method=method, **how))), row or method)


@pytest.mark.parametrize('name', published_recipes)
def test_a_published_recipe_trains(tmp_path, name):
    "Three steps of every row that has one, on its own network."
    sizes = dict(unet=TINY['net'], unet256=dict(ch=8, levels=3), dtfnet=dict(ch=4))
    m = methods[name]
    net = dict(sizes[m.net], **(dict(text=5, by=m.text) if m.text else {}))
    model = dict(method=name, channels=1, net=net, arch=m.net)
    if m.pred == 'ddbm':
        model['scale'] = dict(s0=0.5, sT=0.5, cov=0.1)
    torch.manual_seed(0)
    den = build(**model)
    before = weights(den).clone()
    data = [
        dict(v, ctx=torch.ones(1, 3, 5)) if m.text else v
        for v in map(Large().__getitem__, range(6))
    ]
    r = Recipe(**recipe_for(name, recipe='published') | dict(steps=3, batch=2))
    log = fit(den, data, tmp_path, name, r, model, **QUIET)
    assert np.isfinite(log.loss).all() and not torch.equal(weights(den), before)


class Large(Few):
    "The same with 16 pixels, which critics need."

    def __getitem__(self, i):
        return {k: v.repeat(1, 2, 2) if k != 'i' else v for k, v in super().__getitem__(i).items()}


def test_what_is_typed_wins_and_the_baseline_keeps_its_own():
    typed = recipe('selfrdb', recipe='published', lr=3e-4, betas='0.8,0.9', clip=0.0, warmup=7)
    assert (typed.lr, typed.betas, typed.warmup, typed.optimiser) == (3e-4, (0.8, 0.9), 7, 'adam')
    assert typed.clip > 1e9 and recipe('cdtsde').clip == 1.0
    for how in (dict(), dict(recipe='published'), dict(lr=3e-4, ema=0.0, schedule='constant')):
        own = recipe('selfrdb', 'regression', steps=77, **how)
        assert own == recipe('regression', steps=77)
    assert recipe('regression', lr=3e-4).lr == 3e-4


def test_dropout_is_the_methods():
    asked = lambda **how: dropout_of(SimpleNamespace(**asdict(Job(**how))))
    assert asked(method='dbim') is None and asked(method='dbim', recipe='published') == 0.1
    assert asked(method='dbim', recipe='published', dropout=0.0) == 0.0
    ends = []
    for share in (0.0, 0.5):
        den = made(dropout=share).train()
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        torch.nn.init.ones_(den.net.unet.conv_out.weight)
        ends.append(den.net(x, torch.ones(2), x))
    assert not torch.equal(*ends)


@pytest.mark.parametrize(
    'wrong, word',
    [
        (dict(recipe='publised'), 'published'),
        (dict(method='flow', recipe='published'), 'no published recipe'),
        (dict(optimiser='adamx'), 'adam'),
        (dict(schedule='linear'), 'schedule'),
        (dict(betas='0.9'), 'betas'),
        (dict(betas='0.9,x'), 'betas'),
        (dict(betas='0.9,0.99', optimiser='rmsprop'), 'leave them out'),
        (dict(weight_decay=-0.5), 'weight_decay'),
        (dict(warmup=-2), 'warmup'),
        (dict(clip=-3.0), 'clip'),
        (dict(ema=0.0, ema_start=5), 'give ema'),
        (dict(dropout=1.0), 'dropout'),
        (dict(dropout=0.1, net='ncsnpp'), 'no dropout'),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(wrong, word):
    with pytest.raises(InputError, match=word):
        plan(Job(smoke=True, overwrite=True, name='no-such-run', **wrong))


def test_what_the_recipe_chose_is_said_in_one_line(capsys):
    plan(Job(method='dbim', recipe='published', lr=2e-4, name='no-such-run'))
    (line,) = [v for v in capsys.readouterr().out.splitlines() if v.startswith('recipe')]
    for word in ("DDBM's release", 'RAdam at 0.0002', 'constant', 'averaged weights 0.9999'):
        assert word in line
    assert line.endswith('dropout 0.1; asked for: lr')


def test_published_rates_over_a_run():
    "pix2pix: half of the steps at the peak, then a line to nothing; SelfRDB: a cosine to 1e-5."
    r = Recipe(**recipe_for('pix2pix', recipe='published') | dict(steps=200))
    np.testing.assert_allclose([lr_at(k, r) for k in (0, 99, 150, 199)], [2e-4, 2e-4, 1e-4, 2e-6])
    r = Recipe(**recipe_for('selfrdb', recipe='published') | dict(steps=1000))
    np.testing.assert_allclose([lr_at(k, r) for k in (0, 1000)], [1.6e-4, 1e-5])


BEGUN = dict(steps=12, batch=2, lr=3e-3, ema=0.9, warmup=2, schedule='cosine')
THEN = dict(steps=20, batch=3, lr=1e-3)


def test_a_changed_run_is_what_an_unbroken_run_of_that_plan_gives(tmp_path):
    "Changed twice and killed in between; weights, moments and averages to the last bit."
    from xmodal.training.loop import checkpoints, load_tensors

    how = dict(save_every=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', Recipe(**BEGUN), Stops(2 * 8 + 1), **how)
    second = Recipe(**BEGUN | THEN)
    with pytest.raises(KeyboardInterrupt):
        more = dict(resume=True, change=('steps', 'batch', 'lr'))
        trained(tmp_path / 'parts', second, Stops(3 * 4 + 1), **how, **more)
    third = Recipe(**BEGUN | THEN | dict(schedule='constant', clip=0.1))
    more = dict(resume=True, change=('schedule', 'clip'))
    parts, log = trained(tmp_path / 'parts', third, **how, **more)
    before = (
        (8, dict(steps=12, batch=2, lr=3e-3)),
        (12, dict(schedule='cosine', clip=1.0)),
    )
    plan_ = Recipe(**BEGUN | THEN | dict(schedule='constant', clip=0.1, before=before))
    whole, _ = trained(tmp_path / 'whole', plan_, **how)
    assert log.attrs['recipe'] == asdict(plan_) and torch.equal(weights(parts), weights(whole))
    ends = [checkpoints(tmp_path / k / 'checkpoints')[-1] for k in ('parts', 'whole')]
    for name in ('model', 'optim', 'ema'):
        a, b = (load_tensors(v / f'{name}.safetensors') for v in ends)
        assert all(torch.equal(a[k], b[k]) for k in {*a, *b})
    other, _ = trained(tmp_path / 'other', Recipe(**BEGUN | THEN), **how)
    assert not torch.equal(weights(parts), weights(other))


def test_images_go_on_being_counted(tmp_path):
    "With another batch every image is still seen once an epoch."

    class Seen(Few):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __getitem__(self, i):
            self.seen.append(i)
            return super().__getitem__(i)

    trained(tmp_path, Recipe(steps=3, batch=2))
    data = Seen()
    trained(tmp_path, Recipe(steps=5, batch=3), data, resume=True, change=('steps', 'batch'))
    assert sorted(data.seen) == list(range(6))


def test_what_cannot_change_and_what_was_not_named_is_refused(tmp_path):
    trained(tmp_path, Recipe(steps=4, batch=2))
    go = lambda change, **r: trained(
        tmp_path, Recipe(**dict(steps=4, batch=2) | r), resume=True, change=change
    )
    for change, r, word in (
        (('seed',), dict(seed=1), 'seed cannot change'),
        (('optimiser',), dict(optimiser='adam'), 'optimiser cannot change'),
        ((), dict(steps=8), 'change steps to go on'),
        (('steps',), dict(steps=8, lr=1e-5), 'started with lr'),
        (('steps',), dict(steps=8, seed=1), 'started with seed'),
        (('steps',), dict(steps=3), '4 are done'),
    ):
        with pytest.raises(InputError, match=word):
            go(change, **r)
    assert trained(tmp_path, Recipe(steps=4, batch=2), resume=True)[1].step.iloc[-1] == 4


def test_more_steps_after_an_early_stop_keep_the_best(tmp_path):
    "A run that waited enough goes on with another rate, and its best is the best of both parts."
    from xmodal.training.loop import Judged

    r = dict(steps=40, batch=4, lr=1e-2)
    how = dict(val=Few(100), val_every=4, save_every=4)
    _, log = trained(tmp_path, Recipe(**r), judged=Judged('psnr', patience=2), **how)
    end, kept = int(log.step.iloc[-1]), log.attrs['kept']
    assert end < 40
    more = dict(resume=True, change=('lr', 'patience'), judged=Judged('psnr', patience=6))
    second = Recipe(**r | dict(lr=1e-3))
    den, log = trained(tmp_path, second, **how, **more)
    assert int(log.step.iloc[-1]) > end and log.attrs['kept']['value'] >= kept['value']
    before = ((end, dict(lr=1e-2)),)
    plan_ = Recipe(**r | dict(lr=1e-3, before=before))
    whole, _ = trained(tmp_path / 'whole', plan_, **how, judged=Judged('psnr', patience=6))
    assert torch.equal(weights(den), weights(whole))


def row(out, **how):
    from xmodal.engine import RowPlan

    r = Recipe(steps=400, batch=2)
    return RowPlan('regression', TINY, r, out, device='cpu', **how)


def test_minutes_are_steps(tmp_path, monkeypatch):
    "From the cost of a step and of a validation; the run is that of so many steps, bit for bit."
    from xmodal import engine

    cost = lambda row, learn, val, n: 1.0 + 0.5 * n + (2.0 if val else 0.0)
    monkeypatch.setattr(engine, 'seconds_of', cost)
    r = row(tmp_path, minutes=1.0, val_every=8)
    spent = 2 + 2 * 4 + 10 + 2 * 2
    assert engine.steps_within(r, Few(), Few()) == int((60 - spent) / (0.5 + 2 / 8))
    assert engine.steps_within(r, Few()) == int((60 - 20) / 0.5)
    with pytest.raises(InputError, match='give more'):
        engine.steps_within(row(tmp_path, minutes=0.15), Few())
    timed = engine.train_row(row(tmp_path / 'a', minutes=0.2), Few())
    n = int((12 - 10) / 0.5)  # two steps are a sixth of the time: two, two and six are tried
    assert timed.log.step.iloc[-1] == n == 4
    same = row(tmp_path / 'b')
    from dataclasses import replace

    other = engine.train_row(replace(same, recipe=replace(same.recipe, steps=n)), Few())
    assert torch.equal(weights(timed.den), weights(other.den))


def test_minutes_that_were_used_count(tmp_path, monkeypatch):
    "A run that goes on has the steps that were planned, however fast the machine is by now."
    from xmodal import engine

    cost = lambda row, learn, val, n: 1.0 + 0.5 * n
    monkeypatch.setattr(engine, 'seconds_of', cost)
    how = dict(minutes=0.25, save_every=2)  # 15 s, ten of them for the trials
    with pytest.raises(KeyboardInterrupt):
        engine.train_row(row(tmp_path, **how), Stops(2 * 5))
    monkeypatch.setattr(engine, 'seconds_of', None)
    found = engine.train_row(row(tmp_path, **how, resume=True), Few())
    assert found.log.step.iloc[-1] == 10
    with pytest.raises(InputError, match='change minutes'):
        engine.train_row(row(tmp_path, minutes=0.5, resume=True), Few())
    found = engine.train_row(row(tmp_path, minutes=0.5, resume=True, change=('steps',)), Few())
    assert found.log.step.iloc[-1] == 20


def test_a_trial_leaves_nothing_and_costs_something(tmp_path, capsys):
    from xmodal import engine

    few, many = (engine.seconds_of(row(tmp_path), Few(), None, n) for n in (2, 60))
    assert 0 < few < many and not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_epochs_are_steps():
    from xmodal.train import with_steps

    p = Job(epochs=3, batch=8)
    assert with_steps(p, 20).steps == 8 and with_steps(Job(steps=5), 20).steps == 5


@pytest.mark.parametrize(
    'wrong, word',
    [
        (dict(epochs=3, minutes=1.0), 'one of steps'),
        (dict(method='residual', minutes=1.0, anchor_steps=30), 'leave anchor_steps out'),
        (dict(epochs=3, steps=7), 'one of steps'),
        (dict(epochs=-1), 'epochs'),
        (dict(change='steps'), 'give resume'),
        (dict(change='seed', resume=True), 'seed cannot change'),
        (dict(change='batch', epochs=2, resume=True), 'give steps'),
        (dict(minutes=1.0, processes=2), 'one process'),
    ],
)
def test_a_budget_that_does_not_fit_is_refused(wrong, word):
    with pytest.raises(InputError, match=word):
        plan(Job(name='no-such-run', **wrong))


def kept(folder, den, **model):
    "A model folder of these weights."
    from xmodal.training.model_folder import DataSpec, ModelSpec, save_model

    window = dict(source_window='minmax', target_window=(0.0, 1.0), channels=(1, 1))
    about = DataSpec(kind='volume', size=32, **window)
    save_model(folder, den, ModelSpec(**TINY | model), about, {}, '')
    return str(folder)


def starting(out, init, model=TINY, **how):
    from xmodal.engine import RowPlan

    r = Recipe(steps=4, batch=2, lr=1e-2)
    return RowPlan(model['method'], model, r, out, device='cpu', init=init, **how)


def test_a_training_starts_from_a_model(tmp_path, capsys):
    "All weights of another pair; of another method or channel count what fits, and that is said."
    from xmodal.engine import build_row

    old = made(seed=5)
    folder = kept(tmp_path / 'model', old)
    den, _ = build_row(starting(tmp_path, folder), Few())
    assert torch.equal(weights(den), weights(old))
    assert 'anew' not in capsys.readouterr().out
    two, _ = build_row(starting(tmp_path, folder, TINY | dict(channels=2)), Few())
    assert 'anew: conv_in, conv_out\n' in capsys.readouterr().out
    names = [k for k, v in two.state_dict().items() if v.shape == old.state_dict().get(k).shape]
    assert 0 < len(names) < len(old.state_dict())
    assert all(torch.equal(two.state_dict()[k], old.state_dict()[k]) for k in names)
    build_row(starting(tmp_path, folder, TINY | dict(method='cdtsde')), Few())
    assert 'anew: bridge\n' in capsys.readouterr().out
    wide = TINY | dict(net=dict(ch=16, mults=[1, 2], layers=1))
    with pytest.raises(InputError, match='weights fit the network'):
        build_row(starting(tmp_path, folder, wide), Few())


def test_frozen_parts_stay_and_the_rest_learns(tmp_path):
    from xmodal.engine import train_row

    old = made(seed=5)
    folder = kept(tmp_path / 'model', old)
    row = starting(tmp_path / 'run', folder, freeze=('down_blocks', 'conv_in'))
    found = train_row(row, Few())
    before = old.state_dict()
    still = {k for k, v in found.den.state_dict().items() if torch.equal(v, before[k])}
    named = {k for k in before if '.down_blocks.' in k or '.conv_in.' in k}
    assert named <= still and len(still) < len(before)
    assert found.log.attrs['init']['frozen'] == ['down_blocks', 'conv_in']
    with pytest.raises(InputError, match='no part .* its parts: .*mid_block'):
        train_row(starting(tmp_path / 'x', folder, freeze=('downs',)), Few())
    with pytest.raises(InputError, match='nothing is left'):
        train_row(starting(tmp_path / 'x', folder, freeze=('net',)), Few())


def test_a_part_that_begins_anew_is_not_frozen(tmp_path):
    "Two channels in place of one: the first layer is as it was drawn, and must learn."
    from dataclasses import replace

    from xmodal.engine import train_row

    folder = kept(tmp_path / 'model', made(seed=5))
    wide = starting(tmp_path / 'run', folder, freeze=('conv_in',))
    wide = replace(wide, model=wide.model | dict(channels=2))
    with pytest.raises(InputError, match='freeze conv_in: .* would stay as they were drawn'):
        train_row(wide, Few())


def test_a_fine_tuning_is_continued_only_from_the_same_start(tmp_path):
    from dataclasses import replace

    from xmodal.engine import train_row

    folder = kept(tmp_path / 'model', made(seed=5))
    other = kept(tmp_path / 'other', made(seed=6))
    with pytest.raises(KeyboardInterrupt):
        train_row(starting(tmp_path / 'a', folder, save_every=1), Stops(2 * 2))
    with pytest.raises(InputError, match='init'):
        train_row(starting(tmp_path / 'a', other, resume=True), Few())
    with pytest.raises(InputError, match='freeze'):
        row = starting(tmp_path / 'a', folder, resume=True, freeze=('mid_block',))
        train_row(row, Few())
    again = train_row(starting(tmp_path / 'a', folder, resume=True), Few())
    whole = train_row(starting(tmp_path / 'b', folder), Few())
    assert torch.equal(weights(again.den), weights(whole.den))
    scratch = train_row(replace(starting(tmp_path / 'c', folder), init=''), Few())
    assert not torch.equal(weights(scratch.den), weights(whole.den))


@pytest.mark.parametrize(
    'wrong, word', [(dict(freeze='mid_block'), 'give init'), (dict(init='/nowhere'), 'nowhere')]
)
def test_a_start_that_is_none_is_refused(wrong, word):
    with pytest.raises(InputError, match=word):
        plan(Job(name='no-such-run', **wrong))
