// Registered signed product. DSP picks the multiplier block or logic cells.
module dp_multiply #(
  parameter int A = 8, B = 8, P = 16,
  parameter bit DSP = 0
) (
  input  logic clk, en,
  input  logic signed [A-1:0] a, input logic signed [B-1:0] b,
  output logic signed [P-1:0] p
);
  if (DSP) begin : g_dsp
    (* use_dsp = "yes" *) logic signed [A+B-1:0] product;
    always_ff @(posedge clk) if (en) product <= a * b;
    assign p = P'(product);
  end else begin : g_logic
    (* use_dsp = "no" *) logic signed [A+B-1:0] product;
    always_ff @(posedge clk) if (en) product <= a * b;
    assign p = P'(product);
  end
endmodule
