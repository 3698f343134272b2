"""``python -m nnssl_mae``: the same commands as ``nnssl-mae`` (torchrun needs a module)."""

from nnssl_mae.cli import main

if __name__ == "__main__":
    main()
