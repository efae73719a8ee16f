// PE dot products of SIMD weights and SIMD inputs, two clocks long: products, then their sum.
// PACK = 1: two products share one multiplier. Weights of two neighbouring PEs stand K bits apart in one factor, and GROUP
// packed products are added before the two sums are taken apart: exact as long as a sum of GROUP products fits K bits.
// `w` holds, for every pair, {w1 - (w0 < 0), w0 sign-extended}: the packed factor is then wires.
module dp_dot #(
  parameter int PE = 2, SIMD = 2, WB = 4, AB = 8,
  parameter bit A_SIGNED = 0,
  parameter bit PACK = 0,
  parameter int K = 16,
  parameter int GROUP = 1,
  parameter bit DSP = 0,
  parameter int SUM = WB + AB + $clog2(SIMD + 1)
) (
  input  logic clk, en,
  input  logic [PE*SIMD*WB-1:0] w,   // PE 0 SIMD 0 in the low bits
  input  logic [SIMD*AB-1:0] a,
  output logic signed [SUM-1:0] sum [PE]
);
  for (genvar p = 0; p < PE; p += (PACK ? 2 : 1)) begin : g_pe
    if (PACK) begin : g_pack
      localparam int GROUPS = (SIMD + GROUP - 1) / GROUP;
      localparam int PW = K + WB + AB + $clog2(GROUP + 1);
      logic [GROUPS*GROUP-1:0][PW-1:0] product;
      logic [GROUPS-1:0][SUM-1:0] low, high;
      for (genvar j = 0; j < GROUPS*GROUP; j++) begin : g_product
        if (j < SIMD) begin : g_real
          wire [WB-1:0] lo = w[(p*SIMD+j)*WB +: WB];
          wire signed [K+WB-1:0] pair = {w[((p+1)*SIMD+j)*WB +: WB], {(K-WB){lo[WB-1]}}, lo};
          dp_multiply #(.A(K+WB), .B(AB), .P(PW), .B_SIGNED(A_SIGNED), .DSP(DSP)) multiply (.clk, .en, .a(pair), .b(a[j*AB +: AB]), .p(product[j]));
        end else begin : g_none
          assign product[j] = '0;
        end
      end
      for (genvar g = 0; g < GROUPS; g++) begin : g_group
        wire signed [PW-1:0] total;
        dp_sum #(.N(GROUP), .IN(PW), .OUT(PW), .CHAIN(DSP)) group (.x(product[g*GROUP +: GROUP]), .y(total));
        assign low[g] = SUM'($signed(total[K-1:0]));
        assign high[g] = SUM'($signed(total[PW-1:K])) + SUM'($unsigned(total[K-1]));
      end
      wire signed [SUM-1:0] low_sum, high_sum;
      dp_sum #(.N(GROUPS), .IN(SUM), .OUT(SUM)) lows (.x(low), .y(low_sum));
      dp_sum #(.N(GROUPS), .IN(SUM), .OUT(SUM)) highs (.x(high), .y(high_sum));
      always_ff @(posedge clk) if (en) begin sum[p] <= low_sum; sum[p+1] <= high_sum; end
    end else begin : g_plain
      logic [SIMD-1:0][WB+AB-1:0] product;
      for (genvar j = 0; j < SIMD; j++) begin : g_product
        dp_multiply #(.A(WB), .B(AB), .P(WB+AB), .B_SIGNED(A_SIGNED), .DSP(DSP)) multiply (.clk, .en, .a($signed(w[(p*SIMD+j)*WB +: WB])), .b(a[j*AB +: AB]), .p(product[j]));
      end
      wire signed [SUM-1:0] total;
      dp_sum #(.N(SIMD), .IN(WB+AB), .OUT(SUM), .CHAIN(DSP)) tree (.x(product), .y(total));
      always_ff @(posedge clk) if (en) sum[p] <= total;
    end
  end
endmodule
