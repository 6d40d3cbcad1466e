"""The variational autoencoder: networks, likelihoods, and (imported apart) the fit."""

from service.vae.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from service.vae.network import VAE, Architecture, DiagonalNormal

__all__ = ["VAE", "Architecture", "Bernoulli", "DiagonalNormal", "DiscretizedLogistic", "Gaussian", "Likelihood"]
