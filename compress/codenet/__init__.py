"""The CoDeNet detector ("CoDeNet: Efficient Deployment of Input-Adaptive Object Detection on Embedded FPGAs", FPGA'21)."""
