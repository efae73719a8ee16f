"""VTrans: masks with a variational information bottleneck, trained with the weights or alone."""
