"""Can the checks of the derivations fail? Break one formula at a time, run its notebook, and see it stop.

    pytest tests/test_derivations.py             (--slow also runs the notebooks unbroken, as nbdev_test does)

Every numbered equation of the CDTSDE paper, 1 to 23, has at least one row: the notebook, the text of the formula, and the
text with a sign or a factor changed. The row passes if the notebook with the change ends in an AssertionError.
"""
import json
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parents[1]/'nbs'

MUTANTS = [ # equation, notebook, formula, broken formula
    ('1',  '01_bridge', 'return alpha*(1 - mix), alpha*mix,', 'return alpha*mix, alpha*(1 - mix),'),
    ('2',  '02_mixing', 'return lam + lam*(1 - lam)*g', 'return lam - lam*(1 - lam)*g'),
    ('2',  '02_mixing', 'return lam + lam*(1 - lam)*g', 'return lam + (1 - lam)*g'),
    ('3',  '02_mixing', 'kappa = math.log((1 - eps)/eps)', 'kappa = math.log(eps/(1 - eps))'),
    ('3',  '02_mixing', 'torch.sigmoid(kappa*(2*u - 1))', 'torch.sigmoid(kappa*(u - 1))'),
    ('4',  '04_energy', '(w*speed**2).sum(-1) + potential', '(w*speed**2).sum(-1) - potential'),
    ('4',  '04_energy', '(0.5*(w*speed**2)', '((w*speed**2)'),
    ('5',  '04_energy', 'E_global = 2*both + .5*', 'E_global = 2*both - .5*'),
    ('5',  '04_energy', "k, m = (30., 10.), (.9, .15)", "k, m = (30., 30.), (.9, .9)"),
    ('6',  '01_bridge', '(-torch.expm1(log_ab)).sqrt()', '-torch.expm1(log_ab)'),
    ('6',  '01_bridge', 'alpha = (log_ab/2).exp()', 'alpha = log_ab.exp()'),
    ('7',  '01_bridge', '(b_t - r*b_s)*y', '(b_t + r*b_s)*y'),
    ('7',  '01_bridge', '(c_t**2 - (r*c_s)**2)', '(c_t**2 + (r*c_s)**2)'),
    ('8',  '01_bridge', 'al0*dmix*(Y - X0)', 'al0*dmix*(X0 - Y)'),
    ('8',  '01_bridge', 'alpha(a_, b_)*mix_dot*(y - x0)', 'alpha(a_, b_)*mix_dot*(y + x0)'),
    ('9',  '03_sample', 'dmix*(Y - X0) - beta_dt*score)', 'dmix*(Y - X0) + beta_dt*score)'),
    ('9',  '03_sample', 'al*dmix*(Y - X0) - beta_dt*score', 'al*dmix*(X0 - Y) - beta_dt*score'),
    ('10', '03_sample', '(-(xg - a*xa - b*ya)/c**2)', '((xg - a*xa - b*ya)/c**2)'),
    ('11', '03_sample', '(x_f - c*eps_theta)/alpha', '(x_f + c*eps_theta)/alpha'),
    ('11', '03_sample', 'eps_theta = eps_ + alpha', 'eps_theta = eps_ - alpha'),
    ('12', '03_sample', '+ 2*a[k]/rho[k]*((xx', '- 2*a[k]/rho[k]*((xx'),
    ('12', '03_sample', 'y_*db + 2*a[k]', '-y_*db + 2*a[k]'),
    ('12', '03_sample', '- a[k]**2*2*rho[k]*dr', '- a[k]**2*rho[k]*dr'),
    ('13', '03_sample', 'solved = r**2*1.7 + rs**2', 'solved = r**2*1.7 - rs**2'),
    ('13', '03_sample', 'solved = r**2*1.7 +', 'solved = r*1.7 +'),
    ('14', '02_mixing', 'torch.stack([x.sin(), x.cos(), y.sin(), y.cos()])', 'torch.stack([x.cos(), x.sin(), y.sin(), y.cos()])'),
    ('14', '02_mixing', 'expand(h, w)*math.pi\n    y', 'expand(h, w)*math.pi/2\n    y'),
    ('15', '01_bridge', 'return r*x_s + (a_t', 'return -r*x_s + (a_t'),
    ('16', '01_bridge', 'x = x - .5*beta_dt*x', 'x = x + .5*beta_dt*x'),
    ('16', '01_bridge', 'math.sqrt(beta_dt)*rng', 'math.sqrt(beta_dt/2)*rng'),
    ('17', '01_bridge', 'm = np.array([a*X0 + b*Y for', 'm = np.array([a*X0 - b*Y for'),
    ('18', '01_bridge', 'near(m_dot, -beta/2*', 'near(m_dot, beta/2*'),
    ('19', '01_bridge', '-beta*c_**2 + beta, eps', '-beta*c_**2 - beta, eps'),
    ('20', '03_sample', 'Normal(a*xa + b*ya, c', 'Normal(a*xa - b*ya, c'),
    ('21', '03_sample', 'zz + 2/v0*(zz', 'zz - 2/v0*(zz'),
    ('21', '03_sample', '**2*var - 2*mid*d_rho ', '**2*var - mid*d_rho '),
    ('22', '03_sample', 'w22 - 2/mid**3', 'w22 + 2/mid**3'),
    ('22', '03_sample', 'var22 - 2*mid*d_rho/mid**4', 'var22 - 2*mid*d_rho/mid**2'),
    ('23', '03_sample', 's_s*(1 - r**2)*x0_hat', 's_s*(1 + r**2)*x0_hat'),
    ('23', '03_sample', '- r**2*mix_t/(1 - mix_t)', '+ r**2*mix_t/(1 - mix_t)'),
    ('23', '03_sample', 's_s*rho_s*(1 - r**2).sqrt()*z', 's_s*rho_s*(1 + r**2).sqrt()*z'),
    ('S',  '03_sample', 'near(step(x, x0, y, at_t, at_s, tau, z), at_s[0]*x0 +', 'near(step(x, x0, y, at_t, at_s, tau, z), at_s[0]*x0 -'),
    ('tau_M',  '03_sample', 'return c_s*(1 - r**2).clamp(min=0).sqrt()', 'return c_s*(1 - r).clamp(min=0).sqrt()'),
    ('tau_VP', '03_sample', 'return markov((a_t + b_t, b_t, c_t), (a_s + b_s, b_s, c_s))', 'return markov((a_t - b_t, b_t, c_t), (a_s - b_s, b_s, c_s))'),
    ('2M', '03_sample', 'return x0_hat + f.to', 'return x0_hat - f.to'),
    ('B_N', '07_grid', 'return .5*(e @ g.T - (e*g)', 'return .5*(e @ g.T + (e*g)'),
    ('14', '02_mixing', 'torch.stack([x.sin(), x.cos(), y.sin(), y.cos()])', 'torch.stack([y.sin(), y.cos(), x.sin(), x.cos()])'),
    ('8',  '01_bridge', 'x = x - .5*beta_dt*x', 'x = x - .4*beta_dt*x'),
    ('leak', '02_mixing', 'return (var*c**2/(c**2 + a**2*var)).mean()', 'return (var*c**2/(c**2 + a*var)).mean()'),
    ('walk', '02_mixing', 'c1*(x - a*h - b*y)/c', 'c1*(x - a*h + b*y)/c'),
    ('left sum', '02_mixing', '.5*((g1 - g0)*var/(1 + g0*var))', '.5*((g1 - g0)*var/(1 + g1*var))'),
    ('I2SB', '01_bridge', 'Tabulated(r2/s2[-1], s2/s2[-1],', 'Tabulated(s2/s2[-1], r2/s2[-1],'),
    ('I2SB', '01_bridge', 'np.sqrt(s2*r2/s2[-1]))', 's2*r2/s2[-1])'),
    ('Corollary 1', '01_bridge', 'r = (a_t + b_t)/(a_s + b_s)', 'r = a_t/a_s'),
    ('posterior', '03_sample', 'k = torch.where(none, torch.zeros_like(c_t), (c_s**2 - tau**2)', 'k = torch.where(none, torch.zeros_like(c_t), (c_s**2 + tau**2)'),
    ('I-MMSE', '07_grid', '.5*mmse2(gam_.detach()[None])[0]', 'mmse2(gam_.detach()[None])[0]'),
    ('field bound', '07_grid', '2/2*((1 + ends_*.3)**.5 - 1)', '1/2*((1 + ends_*.3)**.5 - 1)'),
    ('4', '04_energy', 'dtype=d.dtype) + 0.5)/n', 'dtype=d.dtype) + 1.5)/n'),
    ('residual', '04_energy', 'return contrast*(dU', 'return (dU'),
    ('residual', '04_energy', 'dU(lam[1:-1], tt) - w*(lam[2:]', 'dU(lam[1:-1], tt) + w*(lam[2:]'),
]


def code_of(notebook):
    cells = json.loads((NBS/f'{notebook}.ipynb').read_text())['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    return [c for c in code if 'nbdev_export' not in c and 'interact(' not in c]


def test_every_equation_has_a_mutant():
    assert {str(n) for n in range(1, 24)} <= {m[0] for m in MUTANTS}
    for _, notebook, formula, broken in MUTANTS:
        assert sum(c.count(formula) for c in code_of(notebook)) == 1, f'{notebook}: {formula!r} must occur once'
        assert formula != broken


def run(notebook, formula='', broken=''):
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    space = {'__name__': '__main__'}
    try:
        for cell in code_of(notebook): exec(compile(cell.replace(formula, broken) if formula else cell, notebook, 'exec'), space)
    finally: plt.close('all')


@pytest.mark.slow
@pytest.mark.parametrize('notebook', sorted({m[1] for m in MUTANTS}))
def test_nothing_is_caught_unbroken(notebook, monkeypatch):
    monkeypatch.chdir(NBS); run(notebook)


@pytest.mark.parametrize('equation, notebook, formula, broken', MUTANTS, ids=[f'Eq.{m[0]}-{k}' for k, m in enumerate(MUTANTS)])
def test_a_broken_formula_is_caught(equation, notebook, formula, broken, monkeypatch):
    monkeypatch.chdir(NBS)
    with pytest.raises(AssertionError): run(notebook, formula, broken)
