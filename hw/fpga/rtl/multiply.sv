// Registered signed product, in a multiplier block (DSP) or in logic cells.
module dp_multiply #(
  parameter int A = 8, B = 8, P = 16,
  parameter bit DSP = 0
) (
  input  logic clk, en,
  input  logic signed [A-1:0] a, input logic signed [B-1:0] b,
  output logic signed [P-1:0] p
);
  logic signed [A+B-1:0] product;
  assign p = P'(product);
  if (DSP) begin : g_dsp
    always_ff @(posedge clk) if (en) product <= a * b;
  end else begin : g_logic
    // the attribute on the operator is what Yosys reads; hw/fpga/yosys.py keeps such products out of multiplier blocks
    always_ff @(posedge clk) if (en) product <= a * (* use_dsp = "no" *) b;
  end
endmodule
