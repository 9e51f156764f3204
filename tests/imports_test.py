"""What may be imported where."""

import subprocess
import sys


def test_the_step_does_not_need_tensorflow():
    """GPU machines without it run the step, the models and the benchmarks."""
    program = (
        "import sys\n"
        "import mlc_jax.core, mlc_jax.methods, mlc_jax.models\n"
        "import mlc_jax.core.optimizers\n"
        "print([name for name in sys.modules if name.split('.')[0].startswith('tensorflow')])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
