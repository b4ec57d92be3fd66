"""Trains, scores and applies methods; `python run.py --help`. The logic is in stfm_jax.command."""

from stfm_jax.command import main

if __name__ == "__main__":
    main()
