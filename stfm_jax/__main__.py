"""`python -m stfm_jax`."""

from stfm_jax.command import main

if __name__ == "__main__":
    main()
