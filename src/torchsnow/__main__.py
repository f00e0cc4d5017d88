"""`python -m torchsnow` is the command `torchsnow`."""

from torchsnow.cli import main

if __name__ == "__main__":
    main()
