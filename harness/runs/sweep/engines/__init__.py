"""Engines of sweeps: processes of this machine, Slurm, or Ray, under one contract."""
