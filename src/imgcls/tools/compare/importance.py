"""Importances: which hyper-parameters make the results of runs differ, and by what share."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from imgcls.config.training import direction
from imgcls.runs.read import finished, written

LEAST_RUNS = 8  # to say which hyper-parameter matters


def importances(table: pd.DataFrame, names: list[str], target: str) -> tuple[dict[str, float], str]:
    """Returns each hyper-parameter's share in the spread of `target` over finished runs, or none, and why.

    The shares are those of fANOVA (Hutter et al. 2014) as Optuna has it.
    """
    done = finished(table, target)
    done = done[np.isfinite(done[target])]
    if len(done) < LEAST_RUNS:
        return {}, f"{len(done)} finished runs are too few; at least {LEAST_RUNS} are needed"
    try:
        import optuna
    except ModuleNotFoundError:
        return {}, "it needs Optuna; in the clone: pip install -e '.[sweep]'"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    params: dict[str, list[Any]] = {}
    kinds: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in (n for n in names if done[n].nunique(dropna=False) > 1):
        values = done[name]
        if pd.api.types.is_numeric_dtype(values) and values.dtype != bool and np.isfinite(values).all():
            low, high = float(values.min()), float(values.max())
            kinds[name] = optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 10)
            params[name] = values.astype(float).tolist()
        else:
            params[name] = values.map(written).tolist()
            kinds[name] = optuna.distributions.CategoricalDistribution(sorted(set(params[name])))
    if not kinds:
        return {}, "no value of the config differs"
    study = optuna.create_study(direction="minimize" if direction(target) == "min" else "maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is called experimental
        for value, *chosen in zip(done[target], *params.values(), strict=True):
            given = dict(zip(params, chosen, strict=True))
            study.add_trial(optuna.trial.create_trial(params=given, distributions=kinds, value=float(value)))
        # With trees of this size it takes seconds for 1,000 runs.
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=8, seed=0)
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)), ""
        except (ValueError, RuntimeError) as error:
            return {}, " ".join(str(error).split())
