"""General model servers with our scorer behind them, to load beside ours: LitServe, BentoML, MLServer, plain FastAPI."""
