"""`trd doctor`: what machines have and lack, and the program that tries the package on GPUs."""
