"""The one core of OpenVINO that everything here uses.

Each core sets a stack aside for signals to the thread that first asks it for a processor, and puts back the one before
when it goes. Of two cores the first may be gone by then, and its stack with it: the next signal, and Ctrl-C is one,
would end the process. Cores of a caller's own still do that to each other, but not to this one, which stays.
"""

import openvino

CORE = openvino.Core()  # noqa: TID251
