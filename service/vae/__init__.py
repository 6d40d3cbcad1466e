"""The variational autoencoder: networks and likelihoods."""
