"""The program of ``forked_program.py``, with all that makes something up by chance imported before the fork."""

import random
import ssl
import uuid

import numpy as np
import uuid_utils

from tests.fakes.forked_program import main

__all__ = ["main"]

np.random.seed(1), random.random(), uuid.uuid4(), uuid_utils.uuid4(), ssl.RAND_bytes(1)
