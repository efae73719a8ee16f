// Matrix-vector unit: SF beats of SIMD inputs times SF x (PE x SIMD) weights make PE accumulators; NF such folds make one
// output vector. The window block in front repeats the input for every fold, so no input is stored here.
// PACK = 1: two products share one multiplier, see dp_dot.
module dp_mvu #(
  parameter int PE = 2, SIMD = 2, SF = 4, NF = 4,
  parameter int WB = 4,              // bits of a weight
  parameter int AB = 8,              // bits of an input
  parameter bit A_SIGNED = 0,
  parameter int ACC = 20,            // bits of an accumulator
  parameter bit PACK = 0,
  parameter int K = 16,
  parameter int GROUP = 1,
  parameter bit DSP = 0,
  parameter FILE = "weights.mem",    // NF * SF words of PE * SIMD weights, PE 0 SIMD 0 in the low bits
  parameter STYLE = "auto",          // where they stand: see dp_rom
  parameter PLANES = 64'h0
) (
  input  logic clk, rst,
  input  logic [SIMD*AB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*ACC-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int DEPTH = NF * SF;
  localparam int AW = DEPTH > 1 ? $clog2(DEPTH) : 1;
  localparam int FW = SF > 1 ? $clog2(SF) : 1;

  wire en = !m_valid || m_ready;
  assign s_ready = en;
  wire go = en && s_valid;

  // stage 1: weights and inputs
  logic [AW-1:0] at;
  logic [FW-1:0] fold;
  wire last = fold == FW'(SF-1);
  logic [PE*SIMD*WB-1:0] w;
  dp_rom #(.DEPTH(DEPTH), .WIDTH(PE*SIMD*WB), .FILE(FILE), .STYLE(STYLE), .PLANES(PLANES)) weights (.clk, .en, .at, .q(w));
  logic [SIMD*AB-1:0] a;
  logic v1, f1, l1, v2, f2, l2, v3, f3, l3;
  always_ff @(posedge clk) begin
    if (en) begin
      a <= s_data;
      f1 <= fold == '0; l1 <= last;
      f2 <= f1; l2 <= l1; f3 <= f2; l3 <= l2;
    end
    if (rst) begin
      at <= '0; fold <= '0; v1 <= 1'b0; v2 <= 1'b0; v3 <= 1'b0;
    end else if (en) begin
      v1 <= go; v2 <= v1; v3 <= v2;
      if (go) begin
        fold <= last ? '0 : fold + 1'b1;
        at <= at == AW'(DEPTH-1) ? '0 : at + 1'b1;
      end
    end
  end

  // stages 2 and 3: products and their sum, per PE
  logic signed [WB+AB+$clog2(SIMD+1)-1:0] sum [PE];
  dp_dot #(.PE(PE), .SIMD(SIMD), .WB(WB), .AB(AB), .A_SIGNED(A_SIGNED), .PACK(PACK), .K(K), .GROUP(GROUP), .DSP(DSP)) dot (.clk, .en, .w, .a, .sum);

  // stage 4: accumulators, stage 5: result
  dp_accumulate #(.PE(PE), .IN(WB+AB+$clog2(SIMD+1)), .ACC(ACC)) accumulate (
    .clk, .rst, .en, .valid(v3), .first(f3), .last(l3), .sum, .m_data, .m_valid
  );
endmodule
