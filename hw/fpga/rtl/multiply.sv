// Registered product of signed `a` and `b` (signed or not), in a multiplier block (DSP) or in logic cells. In logic, pairs of
// bits of `a` make partial products of two terms each, which takes about three quarters of the cells of a plain `*`.
module dp_multiply #(
  parameter int A = 8, B = 8, P = 16,
  parameter bit B_SIGNED = 0,
  parameter bit DSP = 0
) (
  input  logic clk, en,
  input  logic signed [A-1:0] a, input logic [B-1:0] b,
  output logic signed [P-1:0] p
);
  logic signed [A+B-1:0] product;
  assign p = P'(product);
  wire signed [B:0] x = {B_SIGNED && b[B-1], b};
  if (DSP) begin : g_dsp
    always_ff @(posedge clk) if (en) product <= (A+B)'(a * x);
  end else begin : g_logic
    localparam int PAIRS = (A + 1) / 2;
    wire signed [2*PAIRS-1:0] wide = (2*PAIRS)'(a);
    logic signed [A+B-1:0] sum [PAIRS];
    for (genvar i = 0; i < PAIRS; i++) begin : g_pair
      wire signed [B+2:0] one = wide[2*i] ? (B+3)'(x) : '0;
      wire signed [B+2:0] two = wide[2*i+1] ? (B+3)'(x) <<< 1 : '0;
      wire signed [B+2:0] pair = i == PAIRS-1 ? one - two : one + two;
      if (i == 0) assign sum[0] = (A+B)'(pair);
      else assign sum[i] = sum[i-1] + ((A+B)'(pair) <<< (2*i));
    end
    always_ff @(posedge clk) if (en) product <= sum[PAIRS-1];
  end
endmodule
