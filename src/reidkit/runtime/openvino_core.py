"""The one core of OpenVINO that everything here uses.

Each core sets a stack aside for signals to the thread that first compiles for a processor with it, and puts back the
one before when it goes. Of two cores the first may be gone by then, and its stack with it: the next signal, and Ctrl-C
is one, would end the process.
"""

import openvino

CORE = openvino.Core()
