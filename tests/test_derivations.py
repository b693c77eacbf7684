"""Can the checks of the derivations fail? Break one formula at a time, run its notebook, and see it stop.

    pytest tests/test_derivations.py             (--slow also runs the notebooks unbroken, as nbdev_test does)

Every numbered equation of the CDTSDE paper, 1 to 23, has at least one row: the notebook, the text of the formula, and the
text with a sign or a factor changed. The row passes if the notebook with the change ends in an AssertionError.
"""

import functools, json, multiprocessing
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1] / 'nbs'

MUTANTS = [  # equation, notebook, formula, broken formula
    ('1', '10_bridge', '(1 - mix), alpha * mix,', 'mix, alpha * (1 - mix),'),
    ('2', '11_mixing', 'return lam + lam * (1', 'return lam - lam * (1'),
    ('2', '11_mixing', 'return lam + lam * (1 - lam)', 'return lam + (1 - lam)'),
    ('3', '11_mixing', 'math.log((1 - eps) / eps)', 'math.log(eps / (1 - eps))'),
    ('3', '11_mixing', 'torch.sigmoid(kappa * (2 * u - 1))', 'torch.sigmoid(kappa * (u - 1))'),
    ('4', '13_energy', 'speed**2).sum(-1) + potential(mid,', 'speed**2).sum(-1) - potential(mid,'),
    ('4', '13_energy', 'return (0.5 * (w *', 'return ((w *'),
    ('5', '13_energy', '2 * both + 0.5 * (sum(a', '2 * both - 0.5 * (sum(a'),
    ('5', '13_energy', '10.0), (0.9, 0.15)', '30.0), (0.9, 0.9)'),
    ('6', '10_bridge', '(-torch.expm1(log_ab)).sqrt()', '-torch.expm1(log_ab)'),
    ('6', '10_bridge', '(log_ab / 2).exp()', 'log_ab.exp()'),
    ('7', '10_bridge', '+ (b_t - r * b_s) * y', '+ (b_t + r * b_s) * y'),
    ('7', '10_bridge', '(c_t**2 - (r * c_s)', '(c_t**2 + (r * c_s)'),
    ('8', '10_bridge', 'al0 * dmix * (Y - X0)', 'al0 * dmix * (X0 - Y)'),
    ('8', '10_bridge', 'mix_dot * (y - x0), eps=1e-5', 'mix_dot * (y + x0), eps=1e-5'),
    ('9', '12_sample', '(Y - X0) - beta_dt', '(Y - X0) + beta_dt'),
    ('9', '12_sample', 'dmix * (Y - X0) - beta_dt', 'dmix * (X0 - Y) - beta_dt'),
    ('10', '12_sample', 'close(score, (-(xg -', 'close(score, ((xg -'),
    ('11', '12_sample', 'close((x_f - c * eps_theta)', 'close((x_f + c * eps_theta)'),
    ('11', '12_sample', 'eps_theta = eps_ + alpha *', 'eps_theta = eps_ - alpha *'),
    ('12', '12_sample', '+ 2 * a[k] / rho[k]', '- 2 * a[k] / rho[k]'),
    ('12', '12_sample', '+ y_ * db', '+ -y_ * db'),
    (
        '12',
        '12_sample',
        'var = (1 + da / a[k] + 2 / rho[k] * dr) ** 2 * var - a[k] ** 2 * 2 * rho[\n        k\n    ] * dr  # Eq. 12, noise',
        'var = (1 + da / a[k] + 2 / rho[k] * dr) ** 2 * var - a[k] ** 2 * rho[k] * dr  # Eq. 12, noise',
    ),
    ('13', '12_sample', 'r**2 * 1.7 + rs**2 *', 'r**2 * 1.7 - rs**2 *'),
    ('13', '12_sample', 'solved = r**2 * 1.7', 'solved = r * 1.7'),
    ('14', '11_mixing', 'return x.sin(), x.cos()', 'return x.cos(), x.sin()'),
    (
        '14',
        '11_mixing',
        "device=device or 'cpu') * math.pi",
        "device=device or 'cpu') * math.pi / 2",
    ),
    ('15', '10_bridge', 'r * x_s', '-r * x_s'),
    ('16', '10_bridge', '- 0.5 * beta_dt * x', '+ 0.5 * beta_dt * x'),
    ('16', '10_bridge', 'math.sqrt(beta_dt)', 'math.sqrt(beta_dt / 2)'),
    ('17', '10_bridge', 'np.array([a * X0 + b * Y for', 'np.array([a * X0 - b * Y for'),
    ('18', '10_bridge', 'm_dot, -beta / 2 * (a_', 'm_dot, beta / 2 * (a_'),
    ('19', '10_bridge', '* c_**2 + beta, eps=1e-5', '* c_**2 - beta, eps=1e-5'),
    (
        '20',
        '12_sample',
        'torch.distributions.Normal(a * xa + b * ya,',
        'torch.distributions.Normal(a * xa - b * ya,',
    ),
    ('21', '12_sample', 'zz + 2 / v0 * (zz - est(mid))', 'zz - 2 / v0 * (zz - est(mid))'),
    (
        '21',
        '12_sample',
        'zz, var = (\n        zz + 2 / v0 * (zz - est(mid)) * d_rho,\n        (1 + 2 / v0 * d_rho) ** 2 * var - 2 * mid * d_rho,\n    )',
        'zz, var = zz + 2 / v0 * (zz - est(mid)) * d_rho, (1 + 2 / v0 * d_rho) ** 2 * var - mid * d_rho',
    ),
    ('22', '12_sample', 'var22 = w22 - 2 / mid**3', 'var22 = w22 + 2 / mid**3'),
    ('22', '12_sample', 'd_rho / mid**4  # Eq. 22', 'd_rho / mid**2  # Eq. 22'),
    ('23', '12_sample', 's_s * (1 - r**2) *', 's_s * (1 + r**2) *'),
    ('23', '12_sample', '- mix_s) - r**2 * mix_t', '- mix_s) + r**2 * mix_t'),
    ('23', '12_sample', '* (1 - r**2).sqrt()', '* (1 + r**2).sqrt()'),
    ('S', '12_sample', 'at_s[0] * x0 + at_s[1]', 'at_s[0] * x0 - at_s[1]'),
    ('tau_M', '12_sample', 'r**2).clamp(min=0).sqrt()', 'r).clamp(min=0).sqrt()'),
    ('tau_VP', '12_sample', '+ b_t, b_t, c_t), (a_s +', '- b_t, b_t, c_t), (a_s -'),
    ('2M', '12_sample', 'x0_hat + f.to(x0_hat.dtype)', 'x0_hat - f.to(x0_hat.dtype)'),
    ('B_N', '18_grid', '(e @ g.T - (e * g).sum(1,', '(e @ g.T + (e * g).sum(1,'),
    (
        '14',
        '11_mixing',
        '[*(v.expand(h, w) for v in x), *(v[:, None].expand(h, w) for v in y)]',
        '[*(v[:, None].expand(h, w) for v in y), *(v.expand(h, w) for v in x)]',
    ),
    ('8', '10_bridge', '- 0.5 * beta_dt * x', '- 0.4 * beta_dt * x'),
    ('leak', '11_mixing', '(c**2 + a**2 * var)).mean()', '(c**2 + a * var)).mean()'),
    ('walk', '11_mixing', '- a * h - b * y) /', '- a * h + b * y) /'),
    ('left sum', '11_mixing', '(1 + g0 * var)).mean()', '(1 + g1 * var)).mean()'),
    ('I2SB', '10_bridge', 'Tabulated(r2 / s2[-1], s2', 'Tabulated(s2 / s2[-1], r2'),
    ('I2SB', '10_bridge', 'np.sqrt(s2 * r2 / s2[-1]))', 's2 * r2 / s2[-1])'),
    ('Corollary 1', '10_bridge', 'r = (a_t + b_t) / (a_s + b_s)', 'r = a_t / a_s'),
    (
        'posterior',
        '12_sample',
        '(c_s**2 - tau**2).clamp(min=0).sqrt()',
        '(c_s**2 + tau**2).clamp(min=0).sqrt()',
    ),
    ('I-MMSE', '18_grid', '0.5 * mmse2(gam_.detach()[None])[0],', 'mmse2(gam_.detach()[None])[0],'),
    ('field bound', '18_grid', '2 / 2 * ((1 + ends_', '1 / 2 * ((1 + ends_'),
    ('4', '13_energy', 'dtype=d.dtype) + 0.5) /', 'dtype=d.dtype) + 1.5) /'),
    (
        'residual',
        '13_energy',
        'contrast * (dU(lam[1:-1], tt) - w * (lam[2:] - 2 * lam[1:-1] + lam[:-2]) * n**2)',
        'dU(lam[1:-1], tt) - w * (lam[2:] - 2 * lam[1:-1] + lam[:-2]) * n**2',
    ),
    (
        'residual',
        '13_energy',
        '(dU(lam[1:-1], tt) - w * (lam[2:]',
        '(dU(lam[1:-1], tt) + w * (lam[2:]',
    ),
]


def code_of(notebook):
    path = next(NBS.rglob(f'{notebook}.ipynb'))
    cells = json.loads(path.read_text())['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [c for c in code if 'nbdev_export' not in c and 'interact(' not in c]


def test_every_equation_has_a_mutant():
    assert {str(n) for n in range(1, 24)} <= {m[0] for m in MUTANTS}
    for _, notebook, formula, broken in MUTANTS:
        assert sum(c.count(formula) for c in code_of(notebook)) == 1, (
            f'{notebook}: {formula!r} must occur once'
        )
        assert formula != broken


def run(cells, space, where='notebook'):
    "Run cells in a namespace."
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    try:
        for cell in cells:
            exec(compile(cell, where, 'exec'), space)
    finally:
        plt.close('all')


def end_of(cells, space, where, answer):
    "How cells end, in a process of their own: sends '' for an AssertionError, or what came instead."
    try:
        run(cells, space, where)
        answer.send('nothing was caught')
    except AssertionError:
        answer.send('')
    except BaseException as e:
        answer.send(f'{type(e).__name__}: {e}')


def ends_of(notebook, mutants) -> dict:
    """Each change of a notebook, and how the notebook ends with it.

    The notebook runs once, unbroken, as far as the last change; where one comes, a copy of the process
    runs the broken cell and what follows. So what stands before a change is paid for once.
    """
    copy, space, ends = multiprocessing.get_context('fork'), {'__name__': '__main__'}, {}
    cells = code_of(notebook)
    for k, cell in enumerate(cells):
        for mutant in [m for m in mutants if m[2] in cell]:
            answer, said = copy.Pipe(duplex=False)
            broken = [cell.replace(*mutant[2:]), *cells[k + 1 :]]
            child = copy.Process(target=end_of, args=(broken, space, notebook, said))
            child.start()
            said.close()
            try:
                ends[mutant] = answer.recv() if answer.poll(600) else 'it went on for ten minutes'
            except EOFError:
                ends[mutant] = 'its process died'
            child.kill()
            child.join()
        if len(ends) == len(mutants):
            return ends
        run([cell], space, notebook)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize('notebook', sorted({m[1] for m in MUTANTS}))
def test_nothing_is_caught_unbroken(notebook, monkeypatch):
    monkeypatch.chdir(NBS)
    run(code_of(notebook), {'__name__': '__main__'}, notebook)


@pytest.fixture(scope='module')
def ends(request):
    "Notebook -> how it ends with each change that a selected test asks for; run when first asked."
    asked = {
        tuple(i.callspec.params[k] for k in ('equation', 'notebook', 'formula', 'broken'))
        for i in request.session.items
        if i.originalname == 'test_a_broken_formula_is_caught'
    }
    return functools.cache(
        lambda notebook: ends_of(notebook, {m for m in asked if m[1] == notebook})
    )


@pytest.mark.parametrize(
    'equation, notebook, formula, broken',
    MUTANTS,
    ids=[f'Eq.{m[0]}-{k}' for k, m in enumerate(MUTANTS)],
)
def test_a_broken_formula_is_caught(equation, notebook, formula, broken, ends, monkeypatch):
    monkeypatch.chdir(NBS)
    assert ends(notebook)[equation, notebook, formula, broken] == ''


def test_a_change_that_breaks_nothing_is_not_caught(monkeypatch):
    "The other way round: with the same text in place of the formula the notebook goes to its end."
    monkeypatch.chdir(NBS)
    same = ('2', '13_energy', '2 * both + 0.5 * (sum(a', '2 * both + 0.5 * (sum(a')
    wrong = ('2', '13_energy', '2 * both + 0.5 * (sum(a', '1 / 0 + 0.5 * (sum(a')
    assert ends_of('13_energy', [same, wrong]) == {
        same: 'nothing was caught',
        wrong: 'ZeroDivisionError: division by zero',
    }
