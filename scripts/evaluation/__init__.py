"""What scripts/evaluate.py is made of: pairs of files, protocols, scores, rows on disk, reports.

Its modules import the pack as `realisr`, which is loaded here: another process imports them without the script.
"""

from _pack import load_pack

load_pack()
