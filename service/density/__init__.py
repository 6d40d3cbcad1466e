"""Estimates of log p(x) by importance sampling, and what they are worth."""

from service.density.block import Estimates
from service.density.estimator import Estimator
from service.density.importance import elbo, ess, log_likelihood, log_weights, std_error
from service.density.pareto import khat

__all__ = ["Estimates", "Estimator", "elbo", "ess", "khat", "log_likelihood", "log_weights", "std_error"]
