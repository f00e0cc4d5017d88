"""What all tests share."""

import torch

torch.set_num_threads(1)  # tiny networks are many times slower on two threads of a busy machine
