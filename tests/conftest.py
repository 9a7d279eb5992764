"""One thread a process: the tests are small and run side by side, and a sum in another order is another float."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start

import torch

torch.set_num_threads(1)
